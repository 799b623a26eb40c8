"""Samples that were taken down: what tells them from others, so that none comes back, without saying what they were.

Beside a folder lies another, called the same and ``.removed``, with a Parquet file for each removal: digests of what
rows are known by. A digest is keyed BLAKE2b of 16 bytes, the key a random salt of the folder: nobody reads a URL from
it; who has a URL, and the folder, can see whether it is among them.
"""

from __future__ import annotations

import hashlib
import secrets
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.cache import POSSESSIONS, Remembered
from curator_dask.errors import CuratorError, OutputError
from curator_dask.frames.columns import to_array
from curator_dask.frames.faults import fault_of
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.taken_down_told import beside
from curator_dask.rows.lookup import TEXT, key_texts, with_shards
from curator_dask.rows.remarks import remark_more
from curator_dask.storage import Options, join, walk

#: What becomes of a sample: a row's ``status``, and the reason why it is in no tar.
REMOVED = "removed"
#: As what the summaries of other commands count rows that they leave out for it.
ON_REQUEST = "removed on request"
#: By what rows are known: their shard and key; and these columns, in whatever case they are written.
SAMPLE, URL, SHA256 = "sample", "url", "sha256"
#: The columns by which rows are the same image, wherever they lie.
OF_IMAGE = (URL, SHA256)

_BYTES = 16
_SALT = b"salt"
_SCHEMA = pa.schema([("kind", pa.string()), ("digest", pa.binary(_BYTES)), ("url", pa.binary(_BYTES))])
_KNOWN: Remembered[TakenDown] = POSSESSIONS.add("taken-down", Remembered(4))


def kind_of(column: str) -> str:
    """As what a column's values are known."""
    return column.lower() if column.lower() in OF_IMAGE else column


def plain(kind: str, texts: pa.Array) -> pa.Array:
    """Values of a kind as they are compared: without space around them, digests in small letters, null where empty."""
    texts = pc.utf8_trim_whitespace(texts)
    texts = pc.utf8_lower(texts) if kind == SHA256 else texts
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, TEXT), texts)


@dataclass(frozen=True)
class Marks:
    """By what rows are known.

    Attributes
    ----------
    rows
        How many there are.
    texts
        By kind, ``large_string`` (rows,), null where a row has none; of a kind there may be several.
    images
        Of whole samples the same of kind `SAMPLE`, of each of their images: who takes one of these down takes down the
        sample, and not the other way.
    """

    rows: int
    texts: Mapping[str, Sequence[pa.Array]]
    images: tuple[pa.Array, ...] = ()

    @classmethod
    def of(
        cls, table: pa.Table, id_col: str | None, kinds: Collection[str], shard: str | None = None
    ) -> Marks:
        """Those of a table's rows.

        Parameters
        ----------
        table
            The rows.
        id_col
            Column of the keys; None: there is none.
        kinds
            Which columns count besides, as `kind_of` calls them.
        shard
            Of the rows, where they do not say it.
        """
        texts: dict[str, list[pa.Array]] = {}
        if id_col is not None and id_col in table.column_names:
            keys, _ = key_texts(table.column(id_col))
            if shard is not None:
                urls = pa.array([shard], TEXT).take(pa.array(np.zeros(len(keys), np.int64)))
                texts[SAMPLE] = [with_shards(keys, urls)]
            elif URL_COLUMN in table.column_names:
                texts[SAMPLE] = [with_shards(keys, to_array(table.column(URL_COLUMN)))]
        for name in table.column_names:
            if (kind := kind_of(name)) not in kinds:
                continue
            try:
                found, _ = key_texts(table.column(name))
            except ValueError:  # lists, truths
                continue
            texts.setdefault(kind, []).append(plain(kind, found))
        return cls(len(table), texts)

    def also(self, kind: str, texts: pa.Array) -> Marks:
        """With further texts of a kind."""
        return replace(self, texts={**self.texts, kind: [*self.texts.get(kind, ()), texts]})

    def also_images(self, keys: pa.Array, urls: pa.Array, counts: np.ndarray) -> Marks:
        """With those of the images of whole samples.

        Parameters
        ----------
        keys, urls
            Of the samples, and the shards, as their images' rows have them.
        counts
            int64 (rows,): how many images each has, at most.
        """
        found = []
        for number in range(int(counts.max(initial=0))):
            images = pc.if_else(pa.array(counts > number), keys, pa.scalar(None, TEXT))
            images = pc.binary_join_element_wise(images, pa.scalar(f"_{number}", TEXT), pa.scalar("", TEXT))
            found.append(with_shards(images, urls))
        return replace(self, images=(*self.images, *found))

    def take(self, which: np.ndarray) -> dict[str, list[str]]:
        """By kind, the texts that some rows have."""
        places = pa.array(np.flatnonzero(which))
        return {
            kind: list(
                dict.fromkeys(
                    text for each in arrays for text in each.take(places).to_pylist() if text is not None
                )
            )
            for kind, arrays in self.texts.items()
        }


@dataclass(frozen=True)
class TakenDown:
    """What was taken down of a folder.

    Attributes
    ----------
    salt
        The key of the digests.
    digests
        By kind, those of what must not be there: binary of 16 bytes.
    urls
        Of those of the kind ``sample``, the digest of the URL that each had; null where it had none. A row of the same
        shard and key with another URL is another image.
    removals, samples
        How many there were, and how many samples they removed.
    """

    salt: bytes
    digests: Mapping[str, pa.Array]
    urls: pa.Array
    removals: int = 0
    samples: int = 0

    @property
    def kinds(self) -> list[str]:
        """By which rows are looked at, besides shard and key."""
        return list(dict.fromkeys([*(kind for kind in self.digests if kind != SAMPLE), URL]))

    def mask(self, marks: Marks) -> np.ndarray:
        """Whether each row was taken down: bool (rows,)."""
        found = np.zeros(marks.rows, bool)
        known = {
            kind: [digests_of(self.salt, kind, each) for each in arrays]
            for kind, arrays in marks.texts.items()
            if kind in self.digests or (kind == URL and SAMPLE in self.digests)
        }
        for kind, arrays in known.items():
            if kind in self.digests and kind != SAMPLE:
                for each in arrays:
                    found |= np.asarray(pc.is_in(each, value_set=self.digests[kind], skip_nulls=True))
        images = marks.images if SAMPLE in self.digests else ()
        for each in (*known.get(SAMPLE, ()), *(digests_of(self.salt, SAMPLE, each) for each in images)):
            places = pc.index_in(each, value_set=self.digests[SAMPLE], skip_nulls=True)
            same = np.asarray(pc.is_valid(places))
            for ours in known.get(URL, ()):
                theirs = self.urls.take(places)
                same &= ~np.asarray(pc.not_equal(ours, theirs).fill_null(False))
            found |= same
        return found

    def has(self, kind: str, texts: Sequence[str]) -> np.ndarray:
        """Whether these are among the digests of a kind: bool (texts,)."""
        if kind not in self.digests:
            return np.zeros(len(texts), bool)
        mine = digests_of(self.salt, kind, pa.array(texts, TEXT))
        return np.asarray(pc.is_in(mine, value_set=self.digests[kind]))


def digests_of(salt: bytes, kind: str, texts: pa.Array) -> pa.Array:
    """Binary of 16 bytes: keyed BLAKE2b of the kind, a zero byte and the text in UTF-8; null of null."""
    before = hashlib.blake2b(kind.encode() + b"\0", digest_size=_BYTES, key=salt)

    def digest(text: str) -> bytes:
        own = before.copy()
        own.update(text.encode("utf-8", "surrogatepass"))
        return own.digest()

    return pa.array([None if text is None else digest(text) for text in texts.to_pylist()], pa.binary(_BYTES))


def taken_down(folder: str, options: Options = None) -> TakenDown | None:
    """What was taken down of a folder; None: nothing was.

    Raises
    ------
    OutputError
        What is noted of it cannot be read: nothing is written then that may be among it.
    """
    place = beside(folder)
    if place is None:
        return None
    names = sorted(name for name in walk(place, options) if name.endswith(".parquet"))
    return _KNOWN.get((place, *names), lambda: _read(place, names, options)) if names else None


def _read(place: str, names: Sequence[str], options: Options) -> TakenDown:
    tables, salt, samples = [], b"", 0
    for name in names:
        path = join(place, name)
        try:
            with open_parquet(path, options) as file:
                table = file.read()
        except pa.ArrowInvalid as error:  # what else is damaged may be made again: this may not be removed
            raise OutputError(
                f"{path}: says what was removed, and is damaged. Put the whole file back, as of a copy of the folder;"
                " or move it away and run the same remove again, with the same list or condition, before anything else:"
                " without it removed samples would come back"
            ) from error
        except CuratorError:
            raise
        except Exception as error:  # a store's own, of many types
            raise OutputError(f"{path}: {fault_of(path, error)}") from error
        metadata = table.schema.metadata or {}
        own = bytes.fromhex(metadata.get(_SALT, b"").decode())
        if not own or (salt and own != salt) or not {*_SCHEMA.names} <= {*table.column_names}:
            raise OutputError(
                f"{path}: says what was removed, and is no file of curator-dask remove, or one of another folder. Put"
                " the folder back as it was: without it removed samples would come back"
            )
        record = FileRecord.parse(metadata)
        samples += int(((record and record.report) or {}).get("samples", 0))
        salt = own
        tables.append(table.select(_SCHEMA.names).replace_schema_metadata())
    every = pa.concat_tables(tables).combine_chunks()
    digests, urls = {}, pa.nulls(0, pa.binary(_BYTES))
    for kind in pc.unique(every.column("kind")).to_pylist():
        some = every.filter(pc.equal(every.column("kind"), kind))
        digests[kind] = to_array(some.column("digest"))
        urls = to_array(some.column("url")) if kind == SAMPLE else urls
    return TakenDown(salt, digests, urls, len(names), samples)


def put_taken_down(
    folder: str,
    texts: Mapping[str, Iterable[str]],
    urls: Mapping[str, str],
    samples: int,
    options: Options = None,
) -> None:
    """Note what is taken down of a folder; what is noted already is not noted twice.

    Parameters
    ----------
    folder
        Of the output, the tars or the shards.
    texts
        By kind, what must not be there.
    urls
        By the text of a sample, the URL that its row has.
    samples
        How many are about to be removed.
    options
        For fsspec.

    Raises
    ------
    OutputError
        It cannot be written, or the folder is all of a bucket.
    """
    place = beside(folder)
    if place is None:
        raise OutputError(
            f"{folder}: what is removed is noted in a folder beside it, and there is none beside a bucket: move the"
            " files into a folder of it"
        )
    before = taken_down(folder, options)
    salt = secrets.token_bytes(_BYTES) if before is None else before.salt
    parts = []
    for kind, every in texts.items():
        some = list(dict.fromkeys(every))
        if before is not None:
            some = [text for text, known in zip(some, before.has(kind, some), strict=True) if not known]
        own = pa.array([urls.get(text) if kind == SAMPLE else None for text in some], TEXT)
        parts.append(
            pa.table(
                {
                    "kind": pa.array([kind] * len(some), pa.string()),
                    "digest": digests_of(salt, kind, pa.array(some, TEXT)),
                    "url": digests_of(salt, URL, own),
                },
                schema=_SCHEMA,
            )
        )
    table = pa.concat_tables(parts) if parts else _SCHEMA.empty_table()
    if not len(table) and not samples:
        return
    # In no order of the rows, or of the list.
    table = table.sort_by([("kind", "ascending"), ("digest", "ascending")])
    said = table.replace_schema_metadata({_SALT: salt.hex().encode()})
    number = 0 if before is None else before.removals
    report = {"samples": samples, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    path = join(place, f"{number:05d}-{uuid.uuid4().hex[:8]}.parquet")
    write_table(path, said, FileRecord("", report=report), options)


def staying(folder: str, options: Options, table: pa.Table, id_col: str) -> np.ndarray | None:
    """Which rows may go into a folder, bool (rows,): none that was taken down there; None: all."""
    record = taken_down(folder, options)
    if record is None:
        return None
    gone = record.mask(Marks.of(table, id_col, record.kinds))
    return ~gone if gone.any() else None


def gone_of(
    folder: str, options: Options
) -> Callable[[Sequence[Any], Sequence[str | None]], np.ndarray] | None:
    """What says of keys and shards which rows were taken out of a folder, bool (rows,); None: none were."""
    record = taken_down(folder, options)
    if record is None:
        return None

    def gone(keys: Sequence[Any], urls: Sequence[str | None]) -> np.ndarray:
        texts, _ = key_texts(pa.array(keys))
        samples = with_shards(texts, pa.array(urls, TEXT))
        return record.mask(Marks(len(keys), {SAMPLE: [samples]}))

    return gone


def remark_gone(table: pa.Table, stays: np.ndarray, url: str | None) -> None:
    """Have the summary count rows that are left out, as they were taken down; `url` is their shard's, if one is."""
    gone = pa.array(np.flatnonzero(~stays))
    urls = [url] * len(gone)
    if URL_COLUMN in table.column_names:
        urls = table.column(URL_COLUMN).take(gone).to_pylist()
    for each in dict.fromkeys(urls):
        count = urls.count(each)
        remark_more(each or "", "filtered", {"count": count, "examples": [], "by": {ON_REQUEST: count}})


def without_taken_down(folder: str, options: Options, table: pa.Table, id_col: str) -> pa.Table:
    """The rows that may go into a folder: none that was taken down there."""
    stays = staying(folder, options, table, id_col)
    return table if stays is None else table.filter(pa.array(stays))


def rows_staying(table: pa.Table, is_own: bool, folder: str, options: Options) -> tuple[pa.Table, FileRecord]:
    """Rows of a file that go into a folder, and what made them: none that was taken down there.

    Parameters
    ----------
    table
        The rows.
    is_own
        The file is in the folder already: what was taken out of it before counts, too.
    folder, options
        Where they go, for fsspec.
    """
    record = FileRecord.parse(table.schema.metadata) or FileRecord("")
    left = without_taken_down(folder, options, table, record.id_col or "key")
    return left, replace(record, removed=record.removed * is_own + len(table) - len(left))


def sample_text(shard: str | None, key: str | None) -> str | None:
    """The text of a sample, as `Marks.of` has it."""
    return None if shard is None or key is None else f"{key}\0{shard}"
