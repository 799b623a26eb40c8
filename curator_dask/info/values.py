"""How the values of columns spread: of all rows, or of row groups spread evenly over the files."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator_dask.frames.faults import fault_of
from curator_dask.frames.parquet import open_parquet
from curator_dask.info.footers import FileFacts
from curator_dask.info.found import VALUES, ColumnInfo
from curator_dask.report.folder import is_number
from curator_dask.report.rows import short
from curator_dask.rows.images import values_of
from curator_dask.storage import Options
from curator_dask.threads import in_threads

#: Rows and row groups up to which all are read, and that a sample has.
ROWS, GROUPS = 250_000, 400
#: Rows that are read at once; bytes that numbers may take at a time; different texts of a column that are counted.
_BLOCK, _BYTES, _TEXTS = 16_384, 1 << 28, 20_000
#: Vectors whose norms are looked at, of so many files.
_VECTORS, _FILES = 256, 8
EXACT = 1 << 53  # larger whole numbers are hashes and ids, whose middle means nothing
#: Bytes read at a time of a column, so that it is not held as a whole; and rows up to which it is.
_STREAM, _SMALL = 1 << 20, 1 << 16

_CHANGED = (
    "is another file than a moment ago, or gone: something is writing there. Look again when that has ended"
)


class Part(NamedTuple):
    """Rows to be read: the first `rows` of a row group."""

    file: FileFacts
    group: int
    rows: int


def pick_parts(files: Sequence[FileFacts], exact: bool) -> list[Part]:
    """Row groups to read: all, where that is wanted or they are small; else some, spread evenly."""
    every = [Part(file, number, rows) for file in files for number, rows in enumerate(file.groups) if rows]
    if exact or (len(every) <= GROUPS and sum(each.rows for each in every) <= ROWS):
        return every
    places = np.unique(np.linspace(0, len(every) - 1, min(GROUPS, len(every))).round().astype(int))
    most = max(1, ROWS // len(places))
    return [every[at]._replace(rows=min(every[at].rows, most)) for at in places.tolist()]


def kind_of(kind: pa.DataType) -> str:
    """What is told of a column of a type."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return "vector" if pa.types.is_floating(kind.value_type) else "other"
    if is_number(kind):
        return "number"
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    texts = (*plain, pa.types.is_boolean, pa.types.is_dictionary)
    return "text" if any(is_kind(kind) for is_kind in texts) else "other"


def fill_values(columns: Sequence[ColumnInfo], parts: Sequence[Part], options: Options) -> dict[str, str]:
    """Say of columns of numbers and text how their values spread; returns what is wrong with files, by name.

    Numbers are held as float64 while their quantiles are looked for, of as many columns at a time as fit into a quarter
    of a gigabyte, or of one.
    """
    numbers = [each for each in columns if each.kind == "number"]
    texts = [each for each in columns if each.kind == "text"]
    rows = sum(part.rows for part in parts)
    at_once = max(1, _BYTES // max(1, 8 * rows))
    faults: dict[str, str] = {}
    for start in range(0, max(1, len(numbers)), at_once):
        some = [*numbers[start : start + at_once], *(texts if not start else ())]
        if some:
            looks = {each.name: Look(each.kind) for each in some}
            read_values(looks, parts, options, faults)
            for each in some:
                looks[each.name].say(each)
    return faults


def read_values(
    looks: Mapping[str, Look], parts: Sequence[Part], options: Options, faults: dict[str, str]
) -> None:
    """Show looks, by column, the values of these parts of files; `faults` gets what is wrong with files, by name."""

    def read(part: Part) -> None:
        types = part.file.types
        # What is text here and a number there is told of as a difference.
        names = [name for name, look in looks.items() if name in types and kind_of(types[name]) == look.kind]
        if not names or part.file.name in faults:
            return
        left = part.rows
        try:
            stream = _STREAM if part.file.groups[part.group] > _SMALL else 0
            with open_parquet(part.file.path, options, stream=stream) as file:
                if _is_other(file, part, names):
                    faults[part.file.name] = _CHANGED
                    return
                size = min(_BLOCK, left)
                for batch in file.iter_batches(batch_size=size, row_groups=[part.group], columns=names):
                    batch = batch.slice(0, left)
                    for name in names:
                        looks[name].add(batch.column(name))
                    left -= batch.num_rows
                    if left <= 0:
                        break
        except FileNotFoundError:
            faults[part.file.name] = _CHANGED
        except Exception as error:  # pyarrow's or a store's own, of many types
            faults[part.file.name] = fault_of(part.file.path, error)

    in_threads(read, parts)


def _is_other(file: pq.ParquetFile, part: Part, names: Sequence[str]) -> bool:
    """Whether it is another file than the one whose footer was read."""
    footer = file.metadata
    if footer.num_row_groups != len(part.file.groups) or not {*names} <= {*file.schema_arrow.names}:
        return True
    return bool(footer.row_group(part.group).num_rows != part.file.groups[part.group])


class Look:
    """The values of a column so far; threads may share it.

    Parameters
    ----------
    kind
        ``number`` or ``text``, see `kind_of`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.numbers: list[np.ndarray] = []
        self.texts: Counter[str] = Counter()
        self.bounds: list[float | int] = []
        self.known = self.nan = self.dropped = 0
        self.more = False
        self._lock = threading.Lock()

    def add(self, values: pa.Array) -> None:
        """Count some values."""
        values = plain_values(values).drop_null()
        if self.kind == "number":
            found = _as_numpy(values)
            good = found[~np.isnan(found)]
            bounds: list[float | int] = []
            if len(good):  # float64 would round large whole numbers
                bounds = [good.min().item(), good.max().item()]
                if pa.types.is_integer(values.type):
                    bounds = [each.as_py() for each in pc.min_max(values).values()]
            with self._lock:
                self.known += len(values)
                self.nan += len(found) - len(good)
                self.numbers.append(good)
                self.bounds += bounds
            return
        texts, counts = pc.value_counts(values).flatten()
        said = dict(zip(_texts(texts), counts.to_pylist(), strict=True))
        with self._lock:
            self.known += len(values)
            for text, count in said.items():
                self.texts[text] += count
            if len(self.texts) > _TEXTS:
                self._forget()

    def _forget(self) -> None:
        """Keep the commonest half; what is forgotten may come again, and is then counted too low by so much."""
        ranked = self.texts.most_common()
        self.dropped += ranked[_TEXTS // 2][1]
        self.texts, self.more = Counter(dict(ranked[: _TEXTS // 2])), True

    def say(self, column: ColumnInfo) -> None:
        """Put into a column how they spread; numbers are let go."""
        column.looked, column.nan = self.known - self.nan, self.nan
        if self.kind == "number":
            found = np.concatenate(self.numbers) if self.numbers else np.zeros(0)
            self.numbers.clear()
            if not len(found):
                return
            if column.low is None or column.high is None:
                column.low, column.high = min(self.bounds), max(self.bounds)
            found = found[np.isfinite(found)]
            if len(found) and np.abs(found).max() < EXACT:
                column.p5, column.median, column.p95 = np.quantile(found, [0.05, 0.5, 0.95]).tolist()
            return
        # Of what was forgotten it is not known how much came again.
        column.different, column.at_least = max(len(self.texts), _TEXTS * self.more), self.more
        ranked = sorted(self.texts.items(), key=lambda each: (-each[1], each[0]))
        often = [(text, count) for text, count in ranked if count > 1 + self.dropped]
        if not self.more and len(ranked) <= VALUES:
            often = ranked
        column.values = [(short(text) or "", count / self.known) for text, count in often[:VALUES]]


def plain_values(values: pa.Array) -> pa.Array:
    """The same without dictionary, and without views, which Arrow does not count."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return values.cast(pa.large_string()) if pa.types.is_string_view(values.type) else values


def _texts(values: pa.Array) -> list[str]:
    if pa.types.is_boolean(values.type):
        return ["true" if each else "false" for each in values.to_pylist()]
    return [str(each) for each in values_of(values)]


def fill_norms(columns: Sequence[ColumnInfo], parts: Sequence[Part], options: Options) -> None:
    """Say of vectors what norms they have, by a few of them."""
    for column in columns:
        having = [part for part in parts if part.file.filled.get(column.name) != 0]
        having = [part for part in having if kind_of(part.file.types.get(column.name, pa.null())) == "vector"]
        norms: list[float] = []
        for part in having[:: max(1, len(having) // _FILES)][:_FILES]:
            norms += _norms(part, column.name, options)
        finite = [each for each in norms if np.isfinite(each)]
        if finite:
            column.norm_low, column.norm_high = min(finite), max(finite)
            column.unit = max(abs(each - 1) for each in finite) < 1e-3


def _norms(part: Part, name: str, options: Options) -> list[float]:
    size = min(part.rows, _VECTORS // _FILES)
    try:
        with open_parquet(part.file.path, options, stream=_STREAM) as file:
            batches = file.iter_batches(batch_size=size, row_groups=[part.group], columns=[name])
            vectors = next(batches).column(0).drop_null()
    except Exception:  # what is wrong with the file other columns have said
        return []
    lengths = pc.unique(pc.list_value_length(vectors)).to_pylist()
    values = vectors.flatten()
    if len(lengths) != 1 or values.null_count:
        return []  # none has a vector, or they are none
    matrix = _as_numpy(values).reshape(len(vectors), lengths[0])
    found: list[float] = np.linalg.norm(matrix, axis=1).tolist()
    return found


def _as_numpy(values: pa.Array) -> np.ndarray:
    """float64: numbers without nulls. Arrow's own `to_numpy` imports pandas, which takes longer than to read them."""
    doubles = values.cast(pa.float64(), safe=False)
    if not len(doubles):
        return np.zeros(0)
    return np.frombuffer(doubles.buffers()[1], np.float64, len(doubles), 8 * doubles.offset)
