"""Giving the rows of a partition the columns of other runs, on the worker that writes it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import OutputError
from curator_dask.frames.columns import list_to_matrix, to_array, vectors_in
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.record import LACKING, MADE_BY, FileRecord, inputs_of
from curator_dask.outputs.keeping import Kept
from curator_dask.rows.known import StoredRows
from curator_dask.rows.reasons import NOT_MADE, as_stored, reason_for, reasons_in, said_once
from curator_dask.runs.targets import Target
from curator_dask.words import counted


@dataclass(frozen=True)
class Joined:
    """A partition's rows with the columns of other runs.

    Attributes
    ----------
    table
        The rows.
    failed
        bool (rows,): whether the image failed in any run's eyes.
    said
        What a record says of the columns of the other runs.
    not_made
        Columns of models of which rows have none, for want of a run.
    """

    table: pa.Table
    failed: np.ndarray
    said: FileRecord
    not_made: tuple[str, ...]


class Joining:
    """Gives the rows of a partition the columns of other runs.

    Parameters
    ----------
    kept
        These columns.
    target
        Where the rows go.
    stored
        The rows that are there, if `target` says that something of them is to be kept.
    record
        Of the file that is there.
    id_col
        Column of the keys.
    made
        Columns of scores, of classes too, that this run makes.
    """

    def __init__(
        self,
        kept: Kept,
        target: Target,
        stored: StoredRows,
        record: FileRecord | None,
        id_col: str,
        made: Collection[str],
    ) -> None:
        self._kept, self._target, self._id_col, self._made = kept, target, id_col, made
        self._stored = stored if target.keep else None
        self._record = record if target.keep else None

    def join(self, table: pa.Table, errors: pa.Array, overwrite: bool, drops: bool) -> Joined:
        """The rows with all columns.

        Parameters
        ----------
        table
            What this run has made of the rows.
        errors
            ``image_error`` of its own columns.
        overwrite
            Rows that are not among these may be lost.
        drops
            Rows whose image failed go elsewhere.

        Raises
        ------
        OutputError
            Rows would be lost.
        """
        kept, stored, before = self._kept, self._stored, self._record
        places = np.full(len(table), -1)
        if stored is not None:
            found = stored.places(*(table.column(name).to_pylist() for name in (self._id_col, URL_COLUMN)))
            places[:] = found
            lost = len(stored) - len({*found} - {-1})
            if lost and not overwrite:
                raise OutputError(
                    f"{self._target.path} has {counted(lost, 'row')} with values of {list(self._target.keep)}"
                    f" that this run would"
                    " not write. Write to another path, or use overwrite=True (--overwrite) to drop these rows"
                )
        columns = {name: table.column(name) for name in table.column_names}
        for name, kind in zip(kept.types.names, kept.types.types, strict=True):
            columns[name] = self._column(name, kind, places)
        merged, failed, lacking = self._reasons(columns, errors, places)
        columns[ERROR_COLUMN] = merged
        scores, unscored = self._scores(columns, places)
        joined = pa.table({name: columns[name] for name in kept.order})
        stays = ~failed if drops else np.full(len(table), True)
        same = self._says_the_same(table, places, stays)
        self._check_values(table, places, overwrite)
        # Also of the last run that has made none.
        earlier: dict[str, Any] = {}
        for name in kept.models:
            run = before.run_of(name) if before is not None and name in self._target.keep else None
            tar = (self._target.shard or {}).get("tar") if run is None else run["tar"]
            earlier[name] = run if same and run is not None else {"tar": tar}
        if before is not None and same and kept.own:
            earlier[""] = before.run_of("")
        said = FileRecord(
            "",
            embeddings=self._said("embeddings"),
            settings=self._said("settings"),
            read_by=self._said("read_by"),
            scores=scores,
            derived=before.derived if before is not None else (),
            earlier=earlier,
        )
        return Joined(joined, failed, said, (*lacking, *unscored))

    def _column(self, name: str, kind: pa.DataType, places: np.ndarray) -> Any:
        if self._stored is None or name not in self._target.keep:
            return pa.nulls(len(places), kind)
        column = self._stored.table.column(name).combine_chunks()
        return column.take(pa.array(places, mask=places < 0))

    def _scores(self, columns: dict[str, Any], places: np.ndarray) -> tuple[dict[str, Any], list[str]]:
        """What is said of the scores, and which of them some rows lack.

        A score stays where its vector is what it was. Of other vectors it is null, for ``score`` to make.
        """
        scores = self._said("scores")  # of classes of images, also such as are null now
        unscored: list[str] = []
        for name, made in (self._record.scores if self._record is not None else {}).items():
            # Those of this run are made anew, and it says itself what they are; classes that are not kept have another
            # column in their place, which it makes, too.
            if name not in columns or name in self._kept.models or name in self._made or MADE_BY in made:
                continue
            read = name not in self._kept.types.names  # with the rows, of whose file the record tells
            if read and self._target.companion != self._target.path:
                continue
            if not read and name not in self._target.keep:  # null in all rows
                scores[name] = {**made, LACKING: True}
                unscored.append(name)
                continue
            scores[name] = made
            stale = np.any([self._changed(each, columns, places) for each in inputs_of(made)], axis=0)
            if stale.any():
                null = pa.scalar(None, columns[name].type)
                columns[name] = pc.if_else(pa.array(stale), null, columns[name])
                scores[name] = {**made, LACKING: True}
                unscored.append(name)
        return scores, unscored

    def _changed(self, name: str, columns: Mapping[str, Any], places: np.ndarray) -> np.ndarray:
        """Bool (rows,): whether a row has a value that is not the one that is there; of vectors, bit by bit."""
        if name not in columns or self._stored is None:
            return np.full(len(places), True)
        now = to_array(columns[name])
        if name not in self._stored.table.column_names:
            return np.asarray(pc.is_valid(now))
        before = to_array(self._stored.table.column(name))
        if vectors_in(pa.schema([(name, now.type)])):
            return _changed_vectors(now, before, places)
        then = before.take(pa.array(places, mask=places < 0))  # captions
        pairs = zip(now.to_pylist(), then.to_pylist(), strict=True)
        return np.array([one is not None and one != other for one, other in pairs], bool)

    def _reasons(
        self, columns: Mapping[str, Any], errors: pa.Array, places: np.ndarray
    ) -> tuple[pa.Array, np.ndarray, list[str]]:
        """``image_error`` of all columns; whether an image failed; columns that some row lacks for want of a run."""
        kept = self._kept
        null = {name: np.asarray(columns[name].is_null()) for name in kept.models}
        own = {name: np.asarray(columns[name].is_null()) for name in kept.own if name in columns}
        said = self._stored.table.column(ERROR_COLUMN) if self._stored is not None else None
        values: list[str | None] = [None] * len(errors)
        failed, lacking = np.asarray(pc.is_valid(errors)).copy(), []
        old_errors = np.zeros(len(failed), bool)
        if said is not None and len(failed):
            old_errors = np.append(np.asarray(pc.is_valid(said)), False)[places]
        for row in np.flatnonzero(np.any([failed, old_errors, *null.values()], axis=0)).tolist():
            place = int(places[row])
            old = reasons_in(said[place].as_py()) if said is not None and place >= 0 else []
            reasons: dict[str, str | None] = {}
            for name, nulls in null.items():
                there = place >= 0 and name in self._target.keep
                reasons[name] = (reason_for(name, old) if there else _not_made(name)) if nulls[row] else None
                made = not (reasons[name] or "").startswith(NOT_MADE)
                failed[row] |= reasons[name] is not None and made
                lacking += [] if made or name in lacking else [name]
            if not kept.label:  # what stands there of further columns, by what those are called
                others = (each for each in old if each.column not in (None, *kept.own, *kept.models))
                reasons |= {str(each.column): each.text for each in others}
            mine = kept.own_reasons(
                errors[row].as_py(), {name: bool(each[row]) for name, each in own.items()}
            )
            values[row] = as_stored(said_once({**reasons, **mine}, kept.followers))
        return pa.array(values, pa.string()), failed, lacking

    def _check_values(self, table: pa.Table, places: np.ndarray, overwrite: bool) -> None:
        """Raise OutputError where this run would replace what others made of vectors or pixels by other values."""
        before = self._record
        if overwrite or before is None or self._stored is None or before.shard != self._target.shard:
            return
        if self._kept.own and {*self._kept.own} <= {*before.models}:
            return  # it is this run's own
        old, found = self._stored.table, places >= 0
        both = [name for name in before.derived if name in table.column_names and name in old.column_names]
        now, then = table.filter(pa.array(found)), old.select(both).take(pa.array(places[found]))
        other = [name for name in both if not _equal(now.column(name), then.column(name))]
        if other:
            raise OutputError(
                f"{self._target.path} has columns {other} that another run has made, with other values: give this"
                " run's another name, write to another path, or use overwrite=True (--overwrite)"
            )

    def _says_the_same(self, table: pa.Table, places: np.ndarray, stays: np.ndarray) -> bool:
        """Whether the file will still have the rows that it has, and the values that this run writes too."""
        if self._stored is None or self._record is None:
            return False
        old, here = self._stored.table, places[stays]
        if sorted(here.tolist()) != list(range(self._record.rows)):
            return False
        kept = self._kept
        shared = [
            name for name in old.column_names if name not in (ERROR_COLUMN, *kept.types.names, *kept.own)
        ]
        if any(name not in table.column_names for name in shared):
            return False
        now, before = table.filter(pa.array(stays)), old.select(shared).take(pa.array(here))
        return all(_equal(now.column(name), before.column(name)) for name in shared)

    def _said(self, kind: str) -> dict[str, Any]:
        """What is known of how the columns were made that stay: by the file that is there, or by another."""
        found = {name: origin[kind] for name, origin in self._kept.models.items() if kind in origin}
        if self._record is not None:
            of_the_file: Mapping[str, Any] = getattr(self._record, kind)
            for name in self._target.keep:
                found.pop(name, None)
                found |= {name: of_the_file[name]} if name in of_the_file else {}
        return found


def _not_made(column: str) -> str:
    return (
        f"{NOT_MADE}: the model of this column has not seen the shard as it is now. Run it again, or retry"
        f" (curator-dask retry --column {column})"
    )


def _equal(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    if one.type != other.type:
        try:
            other = other.cast(one.type)
        except pa.ArrowException:
            return False
    # As text NaN equals NaN.
    return bool(one.equals(other)) or str(one.to_pylist()) == str(other.to_pylist())


def _changed_vectors(now: pa.Array, before: pa.Array, places: np.ndarray) -> np.ndarray:
    matrix, valid = list_to_matrix(now)
    old, had = list_to_matrix(before)
    if matrix.shape[1] != old.shape[1] or not len(old):
        return valid
    same = (places >= 0) & had[places] & np.all(matrix == old[places], axis=1)
    return np.asarray(valid & ~same)
