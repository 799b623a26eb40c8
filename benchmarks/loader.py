"""The loader alone against a bare DALI pipeline.

    python -m benchmarks.loader --device cpu

Every case decodes the same JPEG photographs from memory-mapped tars in a process of its own and drops the pixels:

- ``Loader``: `curator_dask.decode.loader.Loader`, Pillow's pixels to within 0.01/255.
- ``DALI, …``: bare pipelines, see `benchmarks.bare.DECODE_KINDS`. ``torch`` does what the Loader does (on a CPU)
  and nothing else; ``whole`` does not even resize. The pixels of ``usual`` and ``crop region`` are 2 to 4 and
  0.15 (of 255) away from Pillow's.
"""

from __future__ import annotations

import os
from functools import partial

from benchmarks import bare
from benchmarks.harness import (
    Case,
    Team,
    case_rows,
    machine,
    parser,
    per_round,
    ranged,
    run_interleaved,
    summary,
    write_result,
    write_tables,
)
from benchmarks.photographs import make_photographs
from curator_dask import backend
from curator_dask.decode.spec import LoaderSpec


def main(given: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, help="photographs (default 1024)")
    arguments.add_argument("--threads", type=int, nargs="+", help="decode threads (default 1 2; gpu: 4 16)")
    options = arguments.parse_args(given)
    on_gpu = options.device == "gpu"
    images = options.images or (96 if options.quick else 1024)
    repeats = options.repeats or (2 if options.quick else 7)
    threads = options.threads or ([1] if options.quick else [4, 16] if on_gpu else [1, 2])

    described = machine()
    os.environ[backend.DEVICE_VARIABLE] = options.device  # for the processes of the teams
    folder = make_photographs(images, 4)
    teams = {number: Team(1, number) for number in threads}
    cases = {}
    for number, team in teams.items():
        spec = LoaderSpec((bare.TRANSFORM,), batch_sizes=(256,), num_threads=number, device=options.device)
        label = f"{number} thread{'s' if number > 1 else ''}"
        cases[f"Loader, {label}"] = Case(partial(team.run, bare.load, spec, folder, 0), team.pids)
        for kind in bare.decode_kinds(options.device):
            work = partial(team.run, bare.decode, kind, bare.TRANSFORM, number, folder, 0)
            cases[f"DALI, {kind}, {label}"] = Case(work, team.pids)
    found = run_interleaved(cases, repeats)
    for team in teams.values():
        team.close()

    ratios = {}
    for number in threads:
        label = f"{number} thread{'s' if number > 1 else ''}"
        for kind in bare.decode_kinds(options.device):
            ours, theirs = found[f"Loader, {label}"], found[f"DALI, {kind}, {label}"]
            ratios[f"Loader ÷ DALI, {kind}, {label}"] = per_round(lambda a, b: a / b, ours, theirs)
            # With one thread the loader uses a second core: its own thread reads while DALI's decodes.
            cpu = zip(*(case["cpu_ms_per_item"]["runs"] for case in (theirs, ours)), strict=True)
            name = f"images a CPU second, Loader ÷ DALI, {kind}, {label}"
            ratios[name] = summary([their / our for their, our in cpu])
    notes = [f"{name}: **{ranged(value)}**" for name, value in ratios.items()]
    print("\n".join(notes))
    results = {
        "what": f"{images} photographs, median of {repeats} interleaved runs.",
        "settings": {"images": images, "repeats": repeats, "threads": threads},
        "cases": found,
        "ratios": ratios,
        "table": case_rows(found),
        "notes": notes,
    }
    if write_result("loader", options, described, results) and options.out is None:
        write_tables()


if __name__ == "__main__":
    main()
