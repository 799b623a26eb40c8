"""Parts of a run: jobs that know nothing of one another, each of which does shards of its own.

Which part a shard is of is told by the shard's name alone. So it does not matter when a job looks, nor what it sees
besides: a shard that comes later goes to its part, and all others stay where they were.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curator_dask.errors import ConfigError
from curator_dask.words import counted

# The last number of the last name: of 00042, a/00042, train-00042 and train-00042-of-01000 it is 42.
_RUNNING = re.compile(r"(\d{1,18})(\D*(?:-of-\d+)?[^\d/]*)$", re.ASCII)
_WRITTEN = re.compile(r"\s*(\d+)\s*/\s*(\d+)\s*", re.ASCII)
_EXPECTED = (
    "expected I/N, which part of how many, counted from 0: those of 8 are 0/8 to 7/8 (in Python part=(0, 8))"
)
_FROM_0 = "Begin the array at 0 (sbatch --array=0-{last}; Kubernetes and AWS Batch do)"


@dataclass(frozen=True)
class Part:
    """Which part of how many.

    Attributes
    ----------
    number
        Counted from 0.
    of
        How many there are.

    Raises
    ------
    ConfigError
        There is no such part.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if any(isinstance(each, bool) or not isinstance(each, int) for each in (self.number, self.of)):
            raise ConfigError(f"part={(self.number, self.of)!r}: {_EXPECTED}")
        if self.of < 1 or not 0 <= self.number < self.of:
            hint = f". {_FROM_0.format(last=self.of - 1)}" if self.of >= 1 and self.number == self.of else ""
            raise ConfigError(f"part {self}: {_EXPECTED}{hint}")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def of_given(cls, given: Any) -> Part | None:
        """The part that a user has given: a pair, or text as ``3/8``; None is None.

        Raises
        ------
        ConfigError
            It is no part.
        """
        if given is None or isinstance(given, cls):
            return given
        if isinstance(given, str):
            match = _WRITTEN.fullmatch(given)
            if not match:
                raise ConfigError(f"part {given!r}: {_EXPECTED}")
            _check_array(int(match[1]), int(match[2]))
            return cls(int(match[1]), int(match[2]))
        if isinstance(given, Sequence) and len(given) == 2:
            return cls(*given)
        raise ConfigError(f"part={given!r}: {_EXPECTED}")

    def takes(self, name: str) -> bool:
        """Whether a shard is of this part, by its name."""
        return part_of(name, self.of) == self.number


def part_of(name: str, count: int) -> int:
    """Which of `count` parts a shard is of, counted from 0.

    Names that differ in their running number alone are dealt one after the other, as cards are: of any `count` that
    follow one another each part gets one. Where the deal begins is another for each round, by a digest, so that every
    tenth shard does not go to one part of ten. Other names are dealt by their digests.

    Parameters
    ----------
    name
        Path below the dataset's root, without suffix.
    count
        Of parts.
    """
    match = _RUNNING.search(name)
    if match is None or "/" in match[2]:
        round_, place, rest = 0, 0, name
    else:
        round_, place = divmod(int(match[1]), count)
        rest = f"{name[: match.start()]}#{match[2]}"
    text = f"{rest}\0{round_}".encode("utf-8", "surrogatepass")
    return (place + int.from_bytes(hashlib.sha256(text).digest()[:8], "big")) % count


def _check_array(number: int, count: int) -> None:
    """Refuse every job of an array of Slurm's that does not begin at 0, not its last alone.

    Raises
    ------
    ConfigError
        The part is the array's number and count, and its numbers are not 0 to one less.
    """
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")
    said = [os.environ.get(name, "") for name in names]
    if not all(each.isdecimal() for each in said):
        return
    job, jobs, first, last = map(int, said)
    if (job, jobs) == (number, count) and (first, last) != (0, jobs - 1):
        raise ConfigError(
            f"part {number}/{count}: this array has {counted(jobs, 'job')} with numbers from {first} to {last}, and"
            f" parts are counted from 0. {_FROM_0.format(last=jobs - 1)}; to run some parts of an earlier array again,"
            " write how many there are in all: --part $SLURM_ARRAY_TASK_ID/8"
        )


def told_part(part: Part, shards: int, all_shards: int) -> dict[str, int]:
    """What a summary says of a part."""
    return {"number": part.number, "of": part.of, "shards": shards, "all_shards": all_shards}


def part_line(told: dict[str, int]) -> str:
    """The same in words: ``part 3/8: 125 of 1,000 shards``."""
    all_shards = counted(told["all_shards"], "shard")
    return f"part {told['number']}/{told['of']}: {told['shards']:,} of {all_shards}"
