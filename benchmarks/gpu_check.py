"""All that runs on a GPU, checked in one go: a line a step, and a JSON at the end.

    scripts/gpu_check.sh --out check.json
    scripts/gpu_check.sh --device cpu --only versions,frames

Each step is a process of its own, in the order of what builds on what. One that fails, crashes or takes too long is
noted, and the next one runs; the JSON is written after each, so that a run that is cut off leaves what it has. With
``--device cpu`` the same tests run on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import machine

ROOT = Path(__file__).parent.parent
_LAST_LINES = 40  # of what a step said, kept where it failed
_SLOWEST = 5  # tests of a step whose times are kept

#: How pytest says what a test, or what is made for it, has taken.
_A_TIME = re.compile(r"\s*\d+\.\d\ds (call|setup|teardown) ")


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes
    ----------
    name
        Of the step.
    arguments
        For Python; ``{device}`` and ``{folder}`` (of the JSON) are filled in.
    minutes
        It may take.
    """

    name: str
    arguments: tuple[str, ...]
    minutes: float


def tests(name: str, minutes: float, *files: str, every: bool = False, slow: bool = False) -> Step:
    """A step of tests: those of one device, or all in the files; slow ones too where that is said."""
    which = () if every else ("-k", "{device}")
    which += ("--runslow",) if slow else ()
    paths = [f"tests/{file}.py" for file in files]
    how = ("-q", "-rf", "--tb=short", f"--durations={_SLOWEST}", "-p", "no:cacheprovider")
    return Step(name, ("-m", "pytest", *how, *which, *paths), minutes)


#: What others need comes first.
STEPS = (
    Step("versions", ("-c", "from benchmarks.harness import machine; print(machine())"), 2),
    tests("types", 1, "test_holding", every=True),
    tests("frames", 2, "test_frames"),
    tests("decode", 4, "test_loader", "test_whole_images", "test_bad_input"),
    tests("several", 3, "test_several_transforms", "test_transforms"),
    tests("fidelity", 4, "test_fidelity", "test_models"),
    tests("cluster", 5, "test_on_device", "test_doors"),
    # Captions, answers, boxes, classes, texts, images inside Parquet files, vectors with boxes covered, heads,
    # clusters, negative CLIP loss, an index, retrieval, duplicates, distances: as on a CPU.
    tests("models", 6, "test_models_on_device", slow=True),
    tests("room", 3, "test_room", "test_fake_gpu", every=True),
    tests("keys", 2, "test_keys", "test_pipeline"),
    tests("compiled", 2, "test_compiling"),
    Step("speed", ("-m", "benchmarks.gpu", "--device", "{device}", "--out", "{folder}/gpu.json"), 10),
)


def run_step(step: Step, device: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Run a step for at most so many seconds, and say what it came to."""
    arguments = [each.format(device=device, folder=folder) for each in step.arguments]
    env = {**os.environ, "CURATOR_DASK_REQUIRE_GPU": "1" if device == "gpu" else "0", "PYTHONPATH": str(ROOT)}
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=env,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        said, _ = process.communicate(timeout=max(1.0, min(seconds, 60 * step.minutes)))
        state = "ok" if process.returncode == 0 else f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # with the workers that it has started
        said, _ = process.communicate()
        state = "no time left"
    lines = said.splitlines()
    counts = re.findall(r"(\d+) (passed|failed|errors?|skipped)", lines[-1] if lines else "")
    result: dict[str, Any] = {"state": state, "seconds": round(time.monotonic() - begun, 1)}
    result |= {word: int(number) for number, word in counts}
    if slowest := [" ".join(line.split()) for line in lines if _A_TIME.match(line)]:
        result["slowest"] = slowest
    if failed := [line for line in lines if line.startswith("FAILED ")]:
        result["failures"] = failed
    if state != "ok" or step.name == "versions":
        result["said"] = lines[-_LAST_LINES:]
    return result


def line_of(name: str, result: dict[str, Any]) -> str:
    """What is shown of a step."""
    counts = ", ".join(f"{result[word]} {word}" for word in ("passed", "failed", "skipped") if word in result)
    return f"{name:10} {result['state']:14} {result['seconds']:7.1f} s  {counts}"


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--device", choices=("cpu", "gpu"), default="gpu")
    options.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    options.add_argument("--only", default="", help="names of steps, with commas between")
    options.add_argument("--minutes", type=float, default=25.0, help="for all")
    return options.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; 0 if all are ok."""
    options = options_of(arguments)
    only = [name for name in options.only.split(",") if name]
    unknown = set(only) - {step.name for step in STEPS}
    if unknown:
        raise SystemExit(f"--only: no step {sorted(unknown)}; there are {[step.name for step in STEPS]}")
    out = options.out.resolve()
    end = time.monotonic() + 60 * options.minutes
    result: dict[str, Any] = {
        "script": "gpu_check",
        "device": options.device,
        "machine": machine(),
        "steps": {},
    }
    for step in STEPS:
        if only and step.name not in only:
            continue
        found = run_step(step, options.device, out.parent, end - time.monotonic())
        result["steps"][step.name] = found
        print(line_of(step.name, found), flush=True)
        out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(f"written to {out}")
    return int(any(found["state"] != "ok" for found in result["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
