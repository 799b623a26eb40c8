"""What it costs to find concepts in captions, in one thread, and what a process holds for it.

    python -m benchmarks.concepts

Captions and concepts are made: words of a vocabulary with Zipf's frequencies, eleven a caption; concepts are words of
it, and two or three of them one behind the other, as in MetaCLIP's list of 500,000. A quarter of the captions has a
letter that is not ASCII. Seconds are of the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from curator_dask.frames.parquet import write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.adding import AddToFile
from curator_dask.outputs.writing import Output
from curator_dask.text.concepts import ConceptList
from curator_dask.text.counting import LIST, Counting
from curator_dask.text.drawing import BalanceRows

ROWS = 10_000  # of a file
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


def make(folder: Path, concepts: int, files: int) -> list[str]:
    """Write a list of concepts and files of captions; returns the files' names."""
    pick, chance = random.Random(0), np.random.default_rng(0)
    weights = range(len(_LETTERS), 0, -1)
    size = max(100, concepts * 2 // 5)
    words = [
        *dict.fromkeys("".join(pick.choices(_LETTERS, weights, k=pick.randint(2, 10))) for _ in range(size))
    ]
    found = dict.fromkeys(words[: concepts * 3 // 10])
    while len(found) < concepts:
        found[" ".join(pick.choices(words, k=pick.choice([2, 2, 2, 3])))] = None
    (folder / "concepts.json").write_text(json.dumps([*found]))
    frequency = 1 / np.arange(1, len(words) + 1)
    names = [f"{number:05d}.parquet" for number in range(files)]
    for number, name in enumerate(names):
        rows = chance.choice(len(words), (ROWS, 11), p=frequency / frequency.sum())
        end = " é." if number % 4 == 0 else "."
        captions = [" ".join(words[each] for each in row).capitalize() + end for row in rows]
        keys = [f"{number:05d}{row:05d}" for row in range(ROWS)]
        write_table(
            str(folder / "rows" / name), pa.table({"key": keys, "caption": captions}), FileRecord("f")
        )
    return names


def main(given: list[str] | None = None) -> dict[str, float]:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--quick", action="store_true", help="few of all, to see that the script works")
    options = arguments.parse_args(given)
    concepts, files = (1000, 1) if options.quick else (500_000, 100)
    found: dict[str, float] = {}
    process = psutil.Process(os.getpid())

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = make(folder, concepts, files)
        source = Output(str(folder / "rows"), None, True, False, False)
        started = time.process_time()
        read = ConceptList.read(folder / "concepts.json")
        found["s to read the list"] = time.process_time() - started
        saved = read.save(str(folder / "counts" / LIST), None)
        counting = Counting(saved, source, str(folder / "counts"), None, "caption")
        before, started = process.memory_info().rss, time.process_time()
        with saved.held():
            found["s to build the automaton"] = time.process_time() - started
            found["MB more held"] = (process.memory_info().rss - before) / 1e6
        started = time.process_time()
        for name in names:
            counting(name)
        found["captions counted a s"] = files * ROWS / (time.process_time() - started)
        _, counts = counting.total(names, read.texts)
        step = BalanceRows(saved, counts, "caption", "key", 200, 0, "", False, "concepts.json")
        add = AddToFile((step,), source, source)
        started = time.process_time()
        for name in names:
            add(name)
        found["rows given their columns a s"] = files * ROWS / (time.process_time() - started)
    for name, value in found.items():
        print(f"{name:30} {value:12,.1f}")
    return found


if __name__ == "__main__":
    main()
