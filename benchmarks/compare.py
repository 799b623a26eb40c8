"""curator_dask beside what users would run instead: the same shards, model, weights and cores, in one run.

    python -m benchmarks.compare --device cpu
    python -m benchmarks.compare --device cpu --loads null --peers timm-webdataset daft --shards 16 --repeats 3

The peers are small scripts in `benchmarks.peers`, each in a virtual environment of its own that `peers.build` makes;
a peer that cannot be installed, or fails, or gives other vectors, is reported and left out. curator_dask is run by
such a script too. Three loads: ``null`` only averages the pixels, so that decoding and the framework are left;
``efficientnet-lite0`` has its pretrained weights; ``vit-b-32`` has random ones. Where the CPU has bf16, curator_dask
takes it for a ViT, and the peers do not: there it is measured with ``autocast=False`` as well, and the loop by hand
under `torch.autocast`. There is a JSON file and a chart for each load and number of shards, written anew after every
round, so that a run which is cut off leaves those that it did.

Before anything is timed, what each peer wrote for all photographs is compared with timm's own transform under Pillow
and the bare model: the number of rows, the ids, each row's cosine (> 0.99). Peak memory is taken in that run, as the
proportional set size of all its processes (pages that several share count once).

Every run is a process of its own, in turns with those of the other peers, and does three jobs:

- the cold start: a shard of 64 photographs for each core, counted from the start of Python;
- the same again, for the peers that start their workers anew in every job;
- all photographs.

Next to curator_dask's turn the bare decoder and the bare model run, in new processes too, as many with as many threads
as its workers (`benchmarks.ceiling`): the ceiling is what the machine could do if nothing else cost anything.

The steady state of a peer whose workers stay is the last job alone. Of one whose workers are new in every job
(marked "by difference") it is the last job less the second one, in photographs and in seconds, so that its starting
is not counted against it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.ceiling import IN_DALI, IN_DALI_ALONE, ON_CPU, decode_case, in_turn, model_case
from benchmarks.harness import Case, cores, machine, parser, ranged, summary, write_result, write_tables
from benchmarks.peers.build import BuildError, build
from benchmarks.peers.chart import bar_chart, table_rows
from benchmarks.peers.check import LOADS, CheckError, alikeness, check, count_rows, load_of, reference
from benchmarks.peers.run import COMPILED, OURS, PEERS, VARIANTS, PeerError, Run
from benchmarks.peers.tuning import fastest, settings_of, tune
from benchmarks.photographs import make_photographs
from curator_dask import backend

SMALL = (64 * cores(), cores())
"""Photographs and shards of the first job: a whole batch for each worker, so that what grows with the first one, or is
compiled for it, is there afterwards."""

FIGURES = {
    "images_per_second": "steady state",
    "cpu_seconds_per_1000": "steady state",
    "cold_seconds": f"from the start of Python until {SMALL[0]} photographs are embedded",
    "job_images_per_second": "a whole job, the start of its workers included where they do not stay",
}
"""What is measured, and when."""


def tars(folder: Path) -> list[str]:
    """The shards of a folder."""
    return sorted(str(path) for path in folder.glob("*.tar"))


def measure_once(run: Run, shards: Path, images: int) -> dict[str, float]:
    """The three jobs of an open run; figures of `FIGURES`."""
    small = tars(make_photographs(*SMALL))
    run.job(small, "cold")
    cold = time.perf_counter() - run.started
    again = (0.0, 0.0) if run.peer.stays else run.job(small, "again")
    whole = run.job(tars(shards), "all")
    rows = count_rows(run.place / "all")
    if rows != images:
        raise PeerError(f"expected {images} rows, found {rows}")
    counted = images if run.peer.stays else images - SMALL[0]
    seconds, cpu = (all_of_it - start for all_of_it, start in zip(whole, again, strict=True))
    if seconds <= 0:
        raise PeerError(f"{images} images took no longer than {SMALL[0]}: take more (--images)")
    return {
        "images_per_second": counted / seconds,
        "cpu_seconds_per_1000": 1000 * cpu / counted,
        "cold_seconds": cold,
        "job_images_per_second": images / whole[0],
    }


class Comparison:
    """One load in one number of shards.

    Parameters
    ----------
    name
        Of the load.
    shards
        Number of them.
    options
        Of the command line.
    tuned
        What `tune` found for a load and a peer; kept from one number of shards to the next, and by ``--tuned`` from
        one run to the next.
    """

    def __init__(
        self,
        name: str,
        shards: int,
        options: argparse.Namespace,
        tuned: dict[tuple[str, str], dict[str, Any]],
    ) -> None:
        self.options, self.tuned = options, tuned
        self.label = f"{name}, {shards} shards"
        self.load = load_of(name)
        self.images = options.images or LOADS[name].images
        self.folder = make_photographs(self.images, shards)
        self.expected = reference(self.load, self.folder)
        self.left_out: dict[str, str] = {}
        self.found: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, list[dict[str, float]]] = {}
        self.bare: dict[str, list[float]] = {}
        self.ceilings: dict[
            str, tuple[str, str, str]
        ] = {}  # whose they are, of which bare cases they are made
        self.rounds = 0  # that are done

    def start(self, name: str, place: Path, settings: Mapping[str, Any], proportional: bool = False) -> Run:
        """A run of a peer, to be entered."""
        peer = PEERS[name]
        python = Path(sys.executable) if peer.environment is None else build(peer.environment)
        return Run(peer, python, self.load, settings, place, proportional)

    def rate(self, name: str, settings: Mapping[str, Any], images: int) -> float:
        """Images a second of a peer with some settings, in one run of at most so many photographs."""
        images = min(self.images, images)
        folder = make_photographs(images, len(tars(self.folder)))
        with (
            tempfile.TemporaryDirectory() as place,
            self.start(name, Path(place) / "run", settings) as run,
        ):
            return measure_once(run, folder, images)["images_per_second"]

    def admit(self, name: str) -> None:
        """Run a peer once, compare what it wrote with the reference, and take its memory."""
        key = (self.load["name"], name)
        if self.options.tune and key not in self.tuned:
            # A difference of two jobs wants all photographs: of few it was three times what it is of all.
            few = LOADS[self.load["name"]].tried if PEERS[name].stays else self.images
            print(f"  {name}: settings", flush=True)
            self.tuned[key] = tune(PEERS[name].settings(cores()), partial(self.rate, name), few, self.images)
            self.tuned[key]["tuned_with"] = f"{self.label}, at {machine()['commit']}"
        tuning = self.tuned.get(key, {"tried": {}})
        best = fastest(tuning["tried"]) or PEERS[name].settings(cores())[0]
        with tempfile.TemporaryDirectory() as place:
            with self.start(name, Path(place) / "run", best, proportional=True) as run:
                run.job(tars(make_photographs(*SMALL)), "cold")  # first, as in a run that is timed
                run.job(tars(self.folder), "all")
            fidelity = check(Path(place) / "run" / "all", self.folder, self.expected)
        self.found[name] = {
            "settings": best,
            **tuning,
            "versions": run.versions,
            "fidelity": fidelity,
            "peak_mib": run.tree.peak_mib,
            "steady": "last job" if PEERS[name].stays else "by difference",
        }
        self.runs[name] = []
        print(f"  {name}: {fidelity}", flush=True)

    def bare_cases(self, stack: contextlib.ExitStack) -> dict[str, Case]:
        """What the ceilings are made of, in the layout of curator_dask's workers; none without it."""
        cases: dict[str, Case] = {}

        def decode(kind: str, workers: int, threads: int) -> Case:
            return decode_case(kind, workers, threads, threads, self.folder, self.images, stack)

        for ours, kind in ((OURS, "model"), (OURS, "folded model"), (COMPILED, "compiled model")):
            if ours not in self.found or (kind == "folded model" and not self.load["folds"]):
                continue
            settings = self.found[ours]["settings"]
            workers, threads, batch = settings["workers"], settings["threads"], settings["batch_size"]
            layout, model = f"{workers}x{threads}", self.load["model"]
            parts = f"decode, {layout}", f"{kind}, {layout}"
            cases.setdefault(parts[0], decode(ON_CPU, workers, threads))
            if model is None:
                cases[f"{IN_DALI_ALONE}, {layout}"] = decode(IN_DALI, workers, threads)
            images = max(self.images // 2, workers * batch)
            done = {"compiled": ours != OURS, "folded": kind == "folded model"}
            cases[parts[1]] = model_case(model, True, workers, threads, batch, images, stack, **done)
            ceiling = f"{ours} ÷ ceiling" + (" of the folded model" if done["folded"] else "")
            self.ceilings[ceiling] = (ours, *parts)
        return cases

    def measure(self, keep: Callable[[dict[str, Any]], None]) -> None:
        """All peers and the bare parts in turn, several times over, every second round backwards.

        `keep` is called after each round with what has been found.
        """
        for number in range(self.options.repeats):
            self.one_round(number)
            self.rounds += 1
            keep(self.so_far())

    def one_round(self, number: int) -> None:
        """All peers once, but for those that have had their rounds; the bare cases beside curator_dask."""
        due = [name for name in self.runs if number < self.options.at_most.get(name, self.options.repeats)]
        ours = sum(name in VARIANTS for name in due)
        order = [*due[:ours], None, *due[ours:]]
        for name in order if number % 2 == 0 else reversed(order):
            if name is None:
                self.run_bare(number)
                continue
            with tempfile.TemporaryDirectory() as place:
                try:
                    with self.start(name, Path(place) / "run", self.found[name]["settings"]) as run:
                        figures = measure_once(run, self.folder, self.images)
                except PeerError as error:
                    self.leave_out(name, f"round {number + 1}: {error}")
                    continue
            self.runs[name].append(figures)
            print(
                f"  round {number + 1}: {name}: {figures['images_per_second']:.1f} images/s,"
                f" cold start {figures['cold_seconds']:.1f} s",
                flush=True,
            )

    def run_bare(self, number: int) -> None:
        """The bare cases once, in new processes, after a run that does not count.

        New as a peer's are: two families of processes that do the same differ by 5 %, for as long as they live.
        """
        with contextlib.ExitStack() as stack:
            cases = self.bare_cases(stack)
            for case in cases.values():
                case.run()
            for name, case in cases.items():
                begun = time.perf_counter()
                images = case.run()
                rates = self.bare.setdefault(name, [])
                rates.append(images / (time.perf_counter() - begun))
                print(f"  round {number + 1}: bare {name}: {rates[-1]:.1f} images/s", flush=True)

    def leave_out(self, name: str, why: object) -> None:
        """Note why a peer has no figures."""
        print(f"  {name}: left out: {why}", flush=True)
        self.left_out[name] = str(why)
        self.runs.pop(name, None)
        self.found.pop(name, None)

    def run(self, keep: Callable[[dict[str, Any]], None]) -> None:
        """Admit all peers, then time those that gave the right vectors. `keep` is given what `so_far` gives."""
        print(f"{self.label}: {self.images} photographs", flush=True)
        for name in self.options.peers:
            peer = PEERS[name]
            if peer.loads and self.load["name"] not in peer.loads:
                continue
            if peer.native_bf16 and backend.current().autocast_dtype() is None:
                continue
            try:
                self.admit(name)
            except (PeerError, BuildError, CheckError) as error:
                self.leave_out(name, error)
        if self.runs:
            self.measure(keep)
        else:
            keep(self.so_far())

    def so_far(self) -> dict[str, Any]:
        """JSON-able, what has been found."""
        figures = {
            name: {figure: summary([run[figure] for run in runs]) for figure in FIGURES}
            for name, runs in self.runs.items()
        }
        return {
            "rounds": self.rounds,
            "peers": {name: self.found[name] | found for name, found in figures.items()},
            "left_out": self.left_out,
            "bare": {name: summary(rates) for name, rates in self.bare.items()},
            "ratios": {name: summary(values) for name, values in self.ratios().items()},
        }

    def ratios(self) -> dict[str, list[float]]:
        """Quotients of rates in one and the same round."""
        rates = {name: [run["images_per_second"] for run in runs] for name, runs in self.runs.items()}
        found: dict[str, list[float]] = {}

        def divide(name: str, above: Sequence[float], below: Sequence[float]) -> None:
            # The first rounds are those of all.
            found[name] = [one / other for one, other in zip(above, below, strict=False)]

        for ours in [name for name in VARIANTS if name in rates]:
            for ceiling in [name for name, (whose, *_) in self.ceilings.items() if whose == ours]:
                both = zip(*(self.bare[part] for part in self.ceilings[ceiling][1:]), strict=True)
                divide(ceiling, rates[ours], [in_turn(*each) for each in both])
            if self.load["model"] is None:
                for name in [name for name in self.bare if name.startswith("decode")]:
                    divide(f"{ours} ÷ bare {name}", rates[ours], self.bare[name])
            for name, theirs in rates.items():
                if name not in VARIANTS:
                    divide(f"{ours} ÷ {name}", rates[ours], theirs)
        return found


def options_of_command_line(given: Sequence[str] | None) -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--peers", nargs="+", choices=PEERS, metavar="PEER", help=f"of: {'; '.join(PEERS)}"
    )
    arguments.add_argument(
        "--loads", nargs="+", choices=LOADS, metavar="LOAD", help=f"of: {', '.join(LOADS)}"
    )
    arguments.add_argument("--shards", nargs="+", type=int, help="numbers of shards (default 4 16; quick 4)")
    arguments.add_argument(
        "--images", type=int, help="photographs (default 4096 or, with a model, 1024; quick 128)"
    )
    arguments.add_argument(
        "--tune", action="store_true", help="try all settings of each peer, take the fastest"
    )
    arguments.add_argument(
        "--tuned", type=Path, nargs="+", default=[], help="results of --tune, to take its settings again"
    )
    arguments.add_argument(
        "--at-most",
        type=_limit,
        nargs="+",
        default=[],
        metavar="PEER=ROUNDS",
        help="peers that take part in the first rounds only: with a slow model one can take minutes",
    )
    options = arguments.parse_args(given)
    options.at_most = dict(options.at_most)
    quick = options.quick
    options.peers = options.peers or ([OURS, "timm-webdataset"] if quick else list(PEERS))
    options.loads = options.loads or (["null"] if quick else list(LOADS))
    options.shards = options.shards or ([4] if quick else [4, 16])
    options.images = options.images or (128 if quick else None)
    options.repeats = options.repeats or (1 if quick else 5)
    if options.device != "cpu":
        arguments.error("--device gpu: the settings of the peers are made for a CPU")
    if options.out and len(options.loads) * len(options.shards) > 1:
        arguments.error("--out: there is a file for each load and number of shards; name one of each")
    if options.images and options.images <= SMALL[0]:
        arguments.error(f"--images {options.images}: expected more than the {SMALL[0]} of the first job")
    return options


def _limit(text: str) -> tuple[str, int]:
    name, _, rounds = text.rpartition("=")
    if name not in PEERS or not rounds.isdecimal() or int(rounds) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected PEER=ROUNDS, with a peer of {', '.join(PEERS)}")
    return name, int(rounds)


def main(given: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = options_of_command_line(given)
    tuned = settings_of(options.tuned, machine()["cpu"])
    for name in options.loads:
        for shards in options.shards:
            described = machine()
            comparison = Comparison(name, shards, options, tuned)
            comparison.run(partial(write, comparison, described))


def write(comparison: Comparison, described: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Write JSON, chart and tables of what was found so far; print it when all rounds are done."""
    options = comparison.options
    notes = [f"{ratio}: **{ranged(value)}**" for ratio, value in found["ratios"].items()]
    notes += [f"{name}: {PEERS[name].note}" for name in found["peers"] if PEERS[name].note]
    notes.append(
        f"least cosine: of a row's vector with timm's under Pillow; of two different photographs' vectors the median"
        f" cosine is {alikeness(comparison.expected):.2g}"
    )
    notes += [f"{name} was left out: {why}" for name, why in found["left_out"].items()]
    if found["rounds"] in (0, options.repeats):
        print("\n".join(notes))
    results = {
        "what": f"{comparison.label}, {comparison.images} photographs, the same cores: median of {found['rounds']}"
        " interleaved runs, each a process of its own. Cold start: from the start of Python until"
        f" {SMALL[0]} photographs are embedded. Peak: proportional memory of all processes.",
        "settings": {
            "load": comparison.load["name"],
            "images": comparison.images,
            "repeats": found["rounds"],
        },
        "figures": FIGURES,
        **found,
        "table": table_rows(found),
        "notes": notes,
    }
    script = f"compare-{comparison.label.replace(', ', '-').replace(' ', '-')}"
    written = write_result(script, options, described, results)
    if written is not None and found["peers"]:
        rates = {name: peer["images_per_second"] for name, peer in found["peers"].items()}
        chart = bar_chart(comparison.label, "images/s in the steady state", rates, marked=VARIANTS)
        written.with_suffix(".svg").write_text(chart)
    if written is not None and options.out is None:
        write_tables()


if __name__ == "__main__":
    main()
