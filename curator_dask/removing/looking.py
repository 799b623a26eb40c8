"""Which samples go: those that are asked for, those that are the same image, and all that was made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.outputs.taken_down import OF_IMAGE, SAMPLE, URL, TakenDown, kind_of, taken_down
from curator_dask.removing.asking import KEY, Asked
from curator_dask.removing.places import Look, Place
from curator_dask.rows.lookup import TEXT
from curator_dask.threads import in_threads

#: As what the keys of a list are noted, so that it is known of them later that they were asked for.
ASKED_KEY = "key of a list"
_HELD = 1_000_000  # rows, of places that are looked at once


@dataclass(frozen=True)
class Hits:
    """Of a file or shard, how many of its samples go.

    Attributes
    ----------
    rows
        Of which something is still there.
    along
        Of these, those that are the same image as one that is asked for.
    new
        Of these, those that no removal before has noted.
    known
        Any of its samples goes, or has gone.
    """

    rows: int = 0
    along: int = 0
    new: int = 0
    known: bool = False


class Looking:
    """Looks for the samples in all places until it finds no more.

    Parameters
    ----------
    places
        Where to look.
    asked
        What is asked for.
    """

    def __init__(self, places: Sequence[Place], asked: Asked) -> None:
        self._places, self._asked = places, asked
        self.records: list[TakenDown | None] = [taken_down(*each.folder) for each in places]
        noted = {kind for each in self.records if each is not None for kind in each.kinds}
        own = set() if asked.lookup is None or asked.on == KEY else {kind_of(asked.on)}
        self._kinds = {*OF_IMAGE, *own, *noted}
        self._spread = {SAMPLE, *OF_IMAGE, *own}
        #: By kind, what the samples are known by.
        self.texts: dict[str, set[str]] = {}
        #: By the text of a sample, the URL of its image.
        self.urls: dict[str, str] = {}
        #: By place and name.
        self.hits: list[dict[str, Hits]] = [{} for _ in places]
        self.asked_rows = 0
        #: Places of which a file has not the column that is asked.
        self.lacking: set[int] = set()
        self._names = [each.names() for each in places]
        self._direct: set[str] = set()  # samples that are asked for, or made of such
        self._masks: dict[tuple[int, str], np.ndarray] = {}
        self._held: dict[tuple[int, str], Look] = {}
        self._rows = 0

    def look(self) -> None:
        """Do it.

        Raises
        ------
        CuratorError
            A file cannot be read, or no file can answer what is asked.
        """
        self._round(first=True)
        self._asked.check()
        before = -1
        while before != (count := sum(map(len, self.texts.values()))):
            before = count
            self._round(first=False)

    def _round(self, first: bool) -> None:
        sets = {kind: pa.array(sorted(some), TEXT) for kind, some in self.texts.items()}
        direct = pa.array(sorted(self._direct), TEXT)
        for number, place in enumerate(self._places):

            def one(name: str, number: int = number, place: Place = place) -> tuple[str, Look]:
                held = self._held.get((number, name))
                return name, place.look(name, self._kinds, self._asked) if held is None else held

            names = self._names[number]
            for start in range(0, len(names), 64):  # so many in memory at a time
                for name, look in in_threads(one, names[start : start + 64]):
                    self._take(number, place, name, look, sets, direct, first)

    def _take(
        self,
        number: int,
        place: Place,
        name: str,
        look: Look,
        sets: Mapping[str, pa.Array],
        direct: pa.Array,
        first: bool,
    ) -> None:
        marks, at = look.marks, (number, name)
        if first:
            before = self._asked.unanswered
            asked = self._asked.mask(look.table, look.id_col, look.asks_keys, place.folder.file(name))
            if self._asked.unanswered > before:
                self.lacking.add(number)
            self.asked_rows += int((asked & look.is_there).sum())
            if asked.any():
                self._masks[at] = asked
            self._rows += marks.rows
            if self._rows <= _HELD:
                self._held[at] = Look(marks, pa.table({}), look.id_col, look.is_there, look.asks_keys)
        asked = self._masks.get(at, np.zeros(marks.rows, bool))
        samples = (*marks.texts.get(SAMPLE, ()), *marks.images)
        ours = asked | _any_in(samples, direct, marks.rows)
        same = np.zeros(marks.rows, bool)
        for kind, values in sets.items():
            same |= _any_in(samples if kind == SAMPLE else marks.texts.get(kind, ()), values, marks.rows)
        record = self.records[number]
        noted = np.zeros(marks.rows, bool) if record is None else record.mask(marks)
        every = ours | same | noted
        if not every.any():
            return
        for kind, some in marks.take(every).items():
            if kind in self._spread:
                self.texts.setdefault(kind, set()).update(some)
        self._direct.update(marks.take(ours).get(SAMPLE, ()))
        if urls := marks.texts.get(URL):
            places = pa.array(np.flatnonzero(every))
            of = urls[0].take(places).to_pylist()
            for each in marks.texts.get(SAMPLE, ()):
                pairs = zip(each.take(places).to_pylist(), of, strict=True)
                self.urls |= {sample: url for sample, url in pairs if sample is not None and url is not None}
        there = every & look.is_there
        self.hits[number][name] = Hits(
            int(there.sum()), int((there & ~ours & ~noted).sum()), int((there & ~noted).sum()), True
        )

    def noted(self) -> dict[str, Iterable[str]]:
        """What is noted of all that goes, by kind: what the list names and no row has, too, where that says which."""
        found: dict[str, Iterable[str]] = {kind: sorted(some) for kind, some in self.texts.items()}
        asked = self._asked
        if asked.notes_all:
            kind = kind_of(asked.on)
            found[kind] = [*found.get(kind, ()), *asked.texts()]
        elif asked.lookup is not None and asked.within is None:
            found[ASKED_KEY] = asked.texts(asked.found)
        return found

    def all_shards(self, number: int) -> int:
        """How many files or shards a place has."""
        return len(self._names[number])

    def not_found(self) -> tuple[int, int, list[str]]:
        """Of the list's values: how many a row has, how many were noted before, and the others."""
        asked = self._asked
        texts = asked.texts(~asked.found) if asked.lookup is not None else []
        known = np.zeros(len(texts), bool)
        kind = ASKED_KEY if asked.on == KEY else kind_of(asked.on)
        for record in self.records:
            if record is not None:
                known |= record.has(kind, texts)
        left = [text for text, is_known in zip(texts, known, strict=True) if not is_known]
        return asked.values - len(texts), int(known.sum()), left


def _any_in(arrays: Sequence[Any], values: pa.Array, rows: int) -> np.ndarray:
    """Which rows have one of some texts in one of several columns."""
    found = np.zeros(rows, bool)
    if len(values):
        for each in arrays:
            found |= np.asarray(pc.is_in(each.cast(TEXT), value_set=values, skip_nulls=True))
    return found
