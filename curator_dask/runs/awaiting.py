"""Steps that look at images only when columns are there that other steps of the same pass make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curator_dask.fingerprint import fingerprint
from curator_dask.runs.step import Step

#: In what makes a column: of which columns of the image, and what made these.
OF = "columns"
#: What makes a column, and is none of what it is.
_NO_MATTER = ("source", "least_cosine", OF)


def awaited_by(step: Step) -> tuple[str, ...]:
    """The columns that a step takes of the rows when it looks at their images."""
    found: tuple[str, ...] = getattr(step, "awaits", ())
    return found


@dataclass(frozen=True)
class Order:
    """In which order the steps of a pass are done, by their numbers.

    Attributes
    ----------
    waiting
        Those that look at images when `makers` have finished.
    makers
        Those whose columns are awaited.
    """

    waiting: frozenset[int]
    makers: tuple[int, ...]

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Order:
        """That of some steps. What none of these makes is not waited for."""
        made = {name: number for number, step in enumerate(steps) for name in step.columns}
        needed = {
            number: {made[name] for name in awaited_by(step) if name in made}
            for number, step in enumerate(steps)
        }
        waiting = frozenset(number for number, makers in needed.items() if makers)
        return cls(waiting, tuple(sorted({each for makers in needed.values() for each in makers} - waiting)))


def with_origins(
    described: Mapping[str, Mapping[str, Any]],
    steps: Sequence[Step],
    before: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Mapping[str, Any]]:
    """What makes columns, also by what their awaited columns were made, so that others of these make another column.

    Parameters
    ----------
    described
        What steps say (`Step.describe`).
    steps
        Which.
    before
        What made columns that none of the steps has described.
    """
    found = dict(described)
    known = {**(before or {}), **described}
    for step in steps:
        origins = [
            f"{name} [{fingerprint({k: v for k, v in known[name].items() if k not in _NO_MATTER})[:12]}]"
            if name in known
            else name
            for name in awaited_by(step)
        ]
        if origins:
            mine = [name for name in step.columns if name in described]
            found |= {name: {**described[name], OF: ", ".join(origins)} for name in mine}
    return found
