"""Tables of text become Parquet, of which parts can be read alone: large ones a piece at a time."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import mmap
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from curator_dask.errors import DatasetError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.committing import write_local
from curator_dask.frames.parquet import read_footer, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.selecting import Folder
from curator_dask.rows.caption_files import read_table
from curator_dask.rows.csv_pieces import CsvPieces, text_lines
from curator_dask.rows.json_pieces import JsonPieces
from curator_dask.rows.key_column import KeyColumn
from curator_dask.rows.user_tables import faults
from curator_dask.storage import Options, RemoteFile, is_remote, local_path, upload

HINT = "Give the name of that column (url_column=, --url-column)"
MEANS = "with the URLs"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
TEXTS = (*DELIMITERS, ".jsonl", ".txt")
_PACKED = ".gz"
#: Bytes of a table's text above which it is read in pieces, from a file on this machine.
WHOLE = 1 << 26
_READ = 1 << 22  # bytes that are read at a time


def kind_of(path: str) -> tuple[str, str]:
    """The suffix of a file that says what is in it, and that of its compression."""
    packed = _PACKED if path.lower().endswith(_PACKED) else ""
    return Path(path[: len(path) - len(packed)]).suffix.lower(), packed


@dataclass(frozen=True)
class TextForm:
    """How files of text are read.

    Attributes
    ----------
    url_column
        They must have.
    texts
        Other columns that are text.
    names
        Of all columns, where no line says them.
    """

    url_column: str
    texts: tuple[str, ...]
    names: tuple[str, ...] | None

    def pieces(self, file: str, data: BinaryIO, size: int) -> tuple[pa.Schema, int, Iterable[pa.Table]]:
        """Columns and number of the rows of a file, and these, some at a time.

        Parameters
        ----------
        file
            Its name, which says what it is.
        data, size
            What is in it, not compressed, and how much that is. Of little all is read at once.

        Raises
        ------
        DatasetError
            It cannot be read, or has no such column.
        """
        kind = kind_of(file)[0]
        key = _TextColumns(self.url_column, MEANS, HINT, self.texts)
        if kind == ".txt":
            schema = pa.schema([(self.url_column, pa.string())])
            rows = sum(map(len, text_lines(data, _READ)))
            data.seek(0)
            return schema, rows, (pa.table([lines], schema) for lines in text_lines(data, _READ))
        first = data.read(_READ)
        data.seek(0)
        try:
            with faults(file):
                if size <= WHOLE:
                    table = read_table(f"table{kind}", data.read(), key).replace_schema_metadata()
                    return table.schema, len(table), [table]
                pieces: JsonPieces | CsvPieces
                if kind == ".jsonl":
                    pieces = JsonPieces.of(data, key)
                else:
                    view = memoryview(mmap.mmap(data.fileno(), 0, access=mmap.ACCESS_READ))
                    pieces = CsvPieces.of(view, key, kind == ".tsv")
                return pieces.schema, pieces.rows, pieces
        except DatasetError as error:
            named = self.names is not None or kind not in DELIMITERS
            if not named and b"http" in first[: first.find(b"\n") if b"\n" in first else None]:
                raise DatasetError(
                    f"{error}. Its first line has a URL: say what its columns are (column_names=, --column-names), all"
                    f" of them in their order, as {self.url_column},caption"
                ) from None
            raise

    def spool(self, file: str, read: Iterable[bytes], into: BinaryIO) -> int:
        """Put what is to be read of a file into another: what is in it, with a line of names; how much that is."""
        size = 0
        if self.names is not None:
            line = io.StringIO()
            csv.writer(line, delimiter=DELIMITERS[kind_of(file)[0]], lineterminator="\n").writerow(self.names)
            size += into.write(line.getvalue().encode())
        is_first = self.names is not None
        for data in read:
            data = data.removeprefix(codecs.BOM_UTF8) if is_first else data
            size, is_first = size + into.write(data), False
        into.seek(0)
        return size


class _Hashed(io.RawIOBase):
    """A file of which it is known what was read."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file, self.digest = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0  # type: ignore[attr-defined]
        self.digest.update(memoryview(buffer)[:count])
        return count


def stage(file: str, number: int, form: TextForm, staged: Folder, options: Options) -> str:
    """The path of a Parquet file with what is in another file.

    Parameters
    ----------
    file, options
        Which; for fsspec.
    number
        Of it among those of the table.
    form
        How it is read.
    staged
        Where Parquet goes.

    Raises
    ------
    DatasetError
        It cannot be read, or has no such column.
    """
    named = {} if form.names is None else {"names": form.names}
    target = staged.file(f"{number:05d}.parquet")
    there = read_footer(target, staged.options)

    def mark_of(data: str) -> str:
        return fingerprint({"form": 1, "data": data, "texts": [form.url_column, *form.texts], **named})

    # What lies here is read once more rather than copied where it is known; what does not is read once.
    data = None if is_remote(file) else _digest(file, options)
    if data is not None and there.is_finished(mark_of(data)):
        return target
    with tempfile.SpooledTemporaryFile(WHOLE, dir=_folder_of(staged)) as spooled:
        into = cast("BinaryIO", spooled)
        with faults(file), _open(file, options) as opened:
            hashed = _Hashed(opened)
            raw = io.BufferedReader(hashed, _READ)
            read = gzip.GzipFile(fileobj=raw) if kind_of(file)[1] else raw
            size = form.spool(file, iter(lambda: read.read(_READ), b""), into)
            while raw.read(_READ):
                pass
        mark = mark_of(hashed.digest.hexdigest())
        if data is None and there.is_finished(mark):
            return target
        if data not in (None, hashed.digest.hexdigest()):
            raise DatasetError(f"{file}: is being written to. Run again when nobody does")
        schema, rows, pieces = form.pieces(file, into, size)
        _write(target, schema, rows, pieces, mark, staged.options, lambda: faults(file))
    return target


def _digest(file: str, options: Options) -> str:
    with faults(file), _open(file, options) as opened:
        hashed = _Hashed(opened)
        raw = io.BufferedReader(hashed, _READ)
        while raw.read(_READ):
            pass
        return hashed.digest.hexdigest()


def _open(file: str, options: Options) -> BinaryIO:
    if is_remote(file):
        return cast("BinaryIO", RemoteFile(file, options))
    return Path(local_path(file)).open("rb", buffering=0)


def _folder_of(staged: Folder) -> str | None:
    """A folder for what is spooled: that beside the shards, which has room for the table; None: of the system."""
    if is_remote(staged.path):
        return None
    folder = Path(staged.path).parent
    return str(folder) if folder.is_dir() else None


def _write(
    target: str,
    schema: pa.Schema,
    rows: int,
    pieces: Iterable[pa.Table],
    mark: str,
    options: Options,
    reading: Callable[[], Any],
) -> None:
    """Write pieces as `write_table` does a table."""
    if isinstance(pieces, list) and len(pieces) == 1:
        write_table(target, pieces[0], FileRecord(mark), options)
        return

    noted = schema.with_metadata(replace(FileRecord(mark), rows=rows).to_metadata())
    plain = [field.name for field in schema if not pa.types.is_nested(field.type)]

    def write(file: Any) -> None:
        left = iter(pieces)
        with pq.ParquetWriter(file, noted, compression="zstd", use_dictionary=plain or False) as writer:
            while True:
                with reading():
                    table = next(left, None)
                if table is None:
                    return
                if len(table):
                    writer.write_table(table.cast(noted))

    if not is_remote(target):
        write_local(Path(local_path(target)), write)
        return
    with tempfile.NamedTemporaryFile() as file:
        write(file)
        file.flush()
        upload(target, file.name, options)


@dataclass(frozen=True)
class _TextColumns(KeyColumn):
    others: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        return (*super().texts, *self.others)
