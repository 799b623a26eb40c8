"""The rows of a page, in their order, with their pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from curator_dask.labelling.choosing import apart, interleave, spread
from curator_dask.labelling.picking import Picked
from curator_dask.labelling.scanning import Decision, Scan

#: Of rows by scores the share that is drawn where heads are surest.
_SURE = 0.2
_TENTH = 10


@dataclass(frozen=True)
class Kind:
    """Rows that are shown for one reason.

    Attributes
    ----------
    said
        The reason, in words.
    count
        How many are shown, at most.
    rows
        int64 (n,): their numbers in the output, the first ones before all others; more than are shown, for some are
        near copies, and some have no picture.
    """

    said: str
    count: int
    rows: np.ndarray


@dataclass
class Shown:
    """What is shown.

    Attributes
    ----------
    places, kinds, pictures
        Of each row where it stands among those that were picked, why it is shown, and its picture.
    unmade
        Reasons why rows that were to be shown have no picture.
    """

    places: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    unmade: list[str] = field(default_factory=list)


def kinds_of(scan: Scan, decision: Decision | None, number: int) -> list[Kind]:
    """Which rows may be shown, and for what reason.

    Parameters
    ----------
    scan
        Of all rows.
    decision
        None: they are spread over the vectors.
    number
        How many, at most.
    """
    if decision is None:
        return [Kind("spread over the vectors", number, scan.drawn.rows)]
    several = len(decision.columns) > 1
    names = " and ".join(decision.columns)
    tails = round(number * _SURE) if several else 2 * round(number * _SURE / 2)
    # Those that were drawn stand in the order of the draw, which rows by their places keep.
    order, size = np.argsort(scan.drawn.scores, kind="stable"), len(scan.drawn.rows)
    tenth = min(max(-(-size // _TENTH), tails), size if several else size // 2)
    high = scan.drawn.rows[np.sort(order[size - tenth :])]
    if several:
        least = f"nearest to a draw between {names}"
        return [
            Kind(least, number - tails, scan.doubtful.rows),
            Kind(f"of the tenth where one of {names} is furthest ahead", tails, high),
        ]
    low = scan.drawn.rows[np.sort(order[:tenth])]
    return [
        Kind(f"nearest to {decision.at:g} of {names}", number - tails, scan.doubtful.rows),
        Kind(f"of the tenth with the highest {names}", tails // 2, high),
        Kind(f"of the tenth with the lowest {names}", tails // 2, low),
    ]


def choose(
    kinds: list[Kind],
    picked: Picked,
    eps: float,
    seed: int | None,
    known: np.ndarray,
    pictures_of: Callable[[list[int]], list[str]],
) -> Shown:
    """The rows that are shown: no near copies, all with a picture.

    Parameters
    ----------
    kinds
        What may be shown.
    picked
        These rows.
    eps
        How far a near copy is, at most.
    seed
        Rows of the one kind are spread over their vectors, by it; None: they are shown in their order.
    known
        int64 (m,): numbers of rows that have a label, which are among those that were picked. None that is shown is
        near one of them.
    pictures_of
        Gives pictures of rows by their places: data URIs, or reasons why there are none.
    """
    shown = Shown()
    found: list[list[tuple[int, str]]] = [[] for _ in kinds]
    without: set[int] = set()  # a picture
    labelled = picked.places(known).tolist()

    def take(number: int, count: int) -> None:
        places, more = picked.places(kinds[number].rows), count + count // 10 + 8
        if seed is None:
            taken = [place for some in found for place, _ in some]
            order = apart(picked.vectors, places, more, eps, labelled + taken)
        else:
            chosen = spread(picked.vectors[places], more, eps, seed, picked.vectors[labelled])
            order = [int(places[each]) for each in chosen]
        order = [place for place in order if place not in without]
        wanted = len(found[number]) + count
        while order and len(found[number]) < wanted:
            end = wanted - len(found[number])
            now, order = order[:end], order[end:]
            for place, picture in zip(now, pictures_of(now), strict=True):
                if picture.startswith("data:"):
                    found[number].append((place, picture))
                else:
                    without.add(place)
                    shown.unmade.append(picture)

    for number, kind in enumerate(kinds):
        take(number, kind.count)
    lacking = sum(kind.count for kind in kinds) - sum(map(len, found))
    if seed is None and lacking:  # where heads are surest may be those rows that are shown already
        take(0, lacking)
    for number, item in interleave([len(some) for some in found]):
        place, picture = found[number][item]
        shown.places.append(place)
        shown.kinds.append(kinds[number].said)
        shown.pictures.append(picture)
    return shown
