"""What a machine could do at most: bare decoding and the bare model, in the same layout of processes and threads."""

from __future__ import annotations

import contextlib
import math
from functools import partial
from pathlib import Path

from benchmarks import bare
from benchmarks.harness import Case, Team

ON_CPU = "torch"
"""The fastest of `benchmarks.bare.DECODE_KINDS` on a CPU whose pixels are Pillow's."""
IN_DALI = "crop region"
"""The fastest of them that is DALI's alone, a little further from Pillow's."""
IN_DALI_ALONE = "decode in DALI alone"
"""What a case of it is called."""
DECODED = 2048
"""Photographs that bare decoding takes at least: seconds of two cores, for a steady figure."""


def decode_case(
    kind: str,
    workers: int,
    threads: int,
    decode_threads: int,
    folder: Path,
    images: int,
    stack: contextlib.ExitStack,
) -> Case:
    """Bare decoding and resizing of all photographs of a folder, several times if they are few, the pixels dropped.

    Parameters
    ----------
    kind
        One of `benchmarks.bare.DECODE_KINDS`.
    workers, threads
        Processes, and torch's threads in each.
    decode_threads
        DALI's in each.
    folder
        Of the shards.
    images
        In them.
    stack
        Ends the processes.
    """
    team = Team(workers, threads)
    stack.callback(team.close)

    def work() -> int:
        times = math.ceil(DECODED / images)
        return sum(
            team.run(bare.decode, kind, bare.TRANSFORM, decode_threads, folder, 0) for _ in range(times)
        )

    return Case(work, team.pids)


def model_case(
    model: str | None,
    pretrained: bool,
    workers: int,
    threads: int,
    batch_size: int,
    images: int,
    stack: contextlib.ExitStack,
    **done: bool,
) -> Case:
    """The bare model on a batch that stays where it is. None is the null model; see `benchmarks.bare.forward`.

    A team of its own: the decoder's threads and the model's settle torch's number of threads each in its own way.
    """
    team = Team(workers, threads)
    stack.callback(team.close)
    work = partial(bare.forward, **done)
    return Case(partial(team.run, work, model, pretrained, True, batch_size, images), team.pids)


def in_turn(*rates: float) -> float:
    """Rate of a machine whose cores do several things to every image, each at a rate."""
    return 1 / sum(1 / rate for rate in rates)


def slowest(*rates: float) -> float:
    """Rate of a pipeline whose stages run on different devices."""
    return min(rates)
