"""What a run of `benchmarks.gpu` found: how busy the GPU was, ratios, verdicts on the goals, and all of it in words."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.harness import gpu_names, per_round, ranged

GOALS: dict[str, tuple[str, float | None]] = {
    "ratio": ("ViT-L/14 bf16: end to end ÷ bare forward of the same model and batch", 0.95),
    "rate": ("ViT-L/14, one H100, images/s", 2500.0),
    "decode": ("ViT-B/32: end to end ÷ bare DALI decode + transform, the same threads", 0.95),
    "copies": ("host copies of pixels", None),
}
"""What is wanted of a GPU, and at least how much; of copies none."""

SAMPLE_EVERY = 0.5  # seconds between two looks at the GPU


class Monitor:
    """Looks at the first GPU every half second, in a thread.

    Attributes
    ----------
    samples
        (seconds on `time.monotonic`'s clock, GPU in per cent, its memory bus in per cent, memory in MiB).
    runs
        (case, start, end) of what ran meanwhile.
    """

    def __init__(self) -> None:
        self.samples: list[tuple[float, float, float, float]] = []
        self.runs: list[tuple[str, float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Monitor:
        if gpu_names():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def watched(self, name: str, work: Callable[[], int]) -> Callable[[], int]:
        """The same work, its times written down."""

        def run() -> int:
            start = time.monotonic()
            done = work()
            self.runs.append((name, start, time.monotonic()))
            return done

        return run

    def _watch(self) -> None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0] or "0"
        fields = "utilization.gpu,utilization.memory,memory.used"
        command = ["nvidia-smi", "-i", visible, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
        while not self._stop.wait(SAMPLE_EVERY):
            now = time.monotonic()
            with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
                text = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
                gpu, bus, memory = (float(value) for value in text.splitlines()[0].split(","))
                self.samples.append((now, gpu, bus, memory))

    def utilisation(self) -> dict[str, Any]:
        """By case: its samples' mean, 10 % quantile and largest memory, and those of its last run one by one.

        A case's first run is its warm-up and does not count.
        """
        found: dict[str, Any] = {}
        for case in dict.fromkeys(name for name, _, _ in self.runs):
            spans = [(start, end) for name, start, end in self.runs if name == case][1:]
            seen = [[s for s in self.samples if start <= s[0] <= end] for start, end in spans]
            together = [sample for each in seen for sample in each]
            if not together:
                continue
            used = sorted(sample[1] for sample in together)
            found[case] = {
                "samples": len(used),
                "gpu_mean": round(statistics.mean(used), 1),
                "gpu_p10": used[len(used) // 10],
                "memory_bus_mean": round(statistics.mean(sample[2] for sample in together), 1),
                "memory_mib_max": max(sample[3] for sample in together),
                "last_run": [[round(sample[0] - spans[-1][0], 1), *sample[1:]] for sample in seen[-1]],
            }
        return found


def judge(
    device: str, gpus: list[str], results: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Ratios of what was measured in the same rounds, and the goals with a verdict each.

    The strictest reading counts: the forward pass is the fastest of all ways, whichever way the package takes.

    Parameters
    ----------
    device
        What was measured; only a ``"gpu"``'s figures are judged.
    gpus
        Names; the first was used.
    results
        Of `benchmarks.gpu`: its ``models`` (the large one, then the small one, by label), ``cases``, ``through``
        and ``traces``.

    Returns
    -------
    tuple
        Ratios by name, and goals by their keys in `GOALS`: ``name``, ``goal``, ``found``, ``verdict``, ``why``.
    """
    cases, (large, small) = results["cases"], results["models"]
    ratios: dict[str, Any] = {}
    found: dict[str, tuple[Any, str]] = {}
    for label in (large, small):
        ours, forward, bare = (
            _fastest(cases, f"{label}: {kind}, ") for kind in ("end to end", "forward", "DALI")
        )
        one = f"{label}: end to end, 1 task"
        same_way = f"{label}: forward, eager, autocast"
        pairs = [(ours, forward), (ours, bare), (ours, same_way), (f"{one}, compile=True", one)]
        for top, bottom in dict.fromkeys(pairs):
            if top in cases and bottom in cases:
                value = per_round(lambda a, b: a / b, cases[top], cases[bottom])
                name = f"{top} ÷ {bottom.removeprefix(label + ': ')}"
                ratios[name] = value
                key = {(large, forward): "ratio", (small, bare): "decode"}.get((label, bottom))
                if key:
                    found[key] = value, f"{name}, through {results['through'].get(top)}"
        if label == large and ours:
            found["rate"] = (
                cases[ours]["items_per_second"],
                f"{ours}, through {results['through'].get(ours)}",
            )
    goals = {}
    for key, (name, wanted) in GOALS.items():
        goal: dict[str, Any] = {"name": name, "goal": "none" if wanted is None else wanted, "found": None}
        if device != "gpu":
            goal |= {"verdict": "not run", "why": "this was a small case on a CPU"}
        elif wanted is None:
            goal |= judge_copies(results["traces"])
        elif key not in found:
            goal |= {"verdict": "not run", "why": "its cases were not measured"}
        else:
            value, why = found[key]
            goal |= {"found": value, "why": why}
            goal["verdict"] = "reached" if value["median"] >= wanted else "missed"
            if key == "rate" and "H100" not in "".join(gpus[:1]):
                goal |= {"verdict": "not run", "why": "the GPU is no H100"}
        goals[key] = goal
    return ratios, goals


def _fastest(cases: Mapping[str, Any], prefix: str) -> str:
    """The fastest of the cases whose names begin so; an empty name if there is none."""
    names = [name for name in cases if name.startswith(prefix)]
    return max(names, key=lambda name: cases[name]["items_per_second"]["median"], default="")


def judge_copies(traces: Mapping[str, Any]) -> dict[str, Any]:
    """Whether pixels left the GPU, or came to it already decoded, in the traces.

    Counted as pixels: what leaves the device beyond the vectors, if it is 1 % of the images' pixels or more; and any
    copy in either direction that is as large as a batch of pixels.

    Parameters
    ----------
    traces
        By name, of `benchmarks.gpu_trace.trace`.

    Returns
    -------
    dict
        ``found``, ``verdict`` and ``why``.
    """
    verdict, texts = "reached", []
    for name, each in traces.items():
        copies = each["copies"]
        into, out = (
            [copy for kind, copy in copies.items() if kind.startswith(way)] for way in ("HtoD", "DtoH")
        )
        sent, received = (sum(copy["bytes"] for copy in way) for way in (into, out))
        largest = max((copy["largest"] for copy in into + out), default=0)
        beyond = max(0, received - each["vector_bytes"])
        if beyond >= 0.01 * each["pixel_bytes"] or largest >= each["batch_pixel_bytes"]:
            verdict = "missed"
        texts.append(
            f"{name}: largest copy between host and device {largest:,} bytes, a batch of pixels has"
            f" {each['batch_pixel_bytes']:,}; from the device {received:,} bytes, of them vectors"
            f" {each['vector_bytes']:,}, all pixels {each['pixel_bytes']:,}; to the device {sent:,}, the encoded"
            f" images {each['encoded_bytes']:,}"
        )
    if not texts:
        return {"verdict": "not run", "why": "no trace was made"}
    return {"found": "none" if verdict == "reached" else "some", "verdict": verdict, "why": "; ".join(texts)}


def notes_of(results: Mapping[str, Any]) -> list[str]:
    """Goals, ratios, utilisation, the costliest operators and what was left out, a line each.

    Parameters
    ----------
    results
        Of `benchmarks.gpu`, with what `judge` and `Monitor.utilisation` make of it.
    """
    notes = []
    for goal in results["goals"].values():
        found, wanted = goal["found"], goal["goal"]
        found = "not measured" if found is None else found if isinstance(found, str) else ranged(found)
        wanted = wanted if isinstance(wanted, str) else f"≥ {wanted:g}"
        notes.append(f"{goal['name']}: **{found}**, goal {wanted}: {goal['verdict']} ({goal['why']})")
    notes += [f"{name}: {ranged(value)}" for name, value in results["ratios"].items()]
    for name, each in results["utilisation"].items():
        notes.append(
            f"{name}: GPU busy {each['gpu_mean']} % on average, 10 % quantile {each['gpu_p10']} %, at most"
            f" {each['memory_mib_max']:.0f} MiB"
        )
    for name, each in results["traces"].items():
        top = ", ".join(f"{entry['name']} {entry['ms']:g} ms" for entry in each["operators"][:5])
        busy = each.get("streams")
        text = f"model's stream busy {busy['model_busy']:.1%}, {busy['gaps']} gaps; " if busy else ""
        notes.append(f"trace, {name}: {text}{top}")
    for name, each in results["sections"].items():
        if "why" in each:
            notes.append(f"{name}: {each['state']}: {each['why']}")
    return notes + [f"{name}: not run: {why}" for name, why in results["not_run"].items()]
