"""What is to be in a new tar: the members of its samples, those that all samples are to have, fields in the JSON."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.errors import ShardError
from curator_dask.outputs.cropping import CROPPED
from curator_dask.outputs.found_samples import FILES
from curator_dask.outputs.json_fields import add_fields
from curator_dask.webdataset.layouts import EMPTY
from curator_dask.webdataset.samples import key_text
from curator_dask.webdataset.writer import Contents


def contents_of(
    samples: pa.Table,
    keys: Sequence[str],
    empty: Sequence[str],
    fields: Sequence[Mapping[str, Any]],
    keep_fields: bool,
    left_alone: list[str],
    captions: Sequence[bytes | None] = (),
    vectors: Mapping[str, Sequence[bytes | None]] | None = None,
) -> tuple[Contents, list[int]]:
    """The members of all samples, one sample after the other.

    Parameters
    ----------
    samples, keys
        What was looked up of the samples, and the keys that they get.
    empty
        Suffixes of members that samples get which have none.
    fields
        Of each sample, what its JSON gets; empty: nothing, of no sample.
    keep_fields
        Fields that the JSON has already stay.
    left_alone
        Gets what to call a JSON that can be given no fields, once it is written.
    captions
        Of each sample, what its ``.txt`` holds, whether it had one or not; None: as it was. Empty: of all as they were.
    vectors
        By suffix, members that samples get last, and None for those that get none.

    Returns
    -------
    The members; and behind the last of each sample, after 0.
    """
    lists = {name: samples.column(name).combine_chunks() for name in ("suffixes", "offsets", "sizes")}
    counts = lists["suffixes"].value_lengths().to_numpy()
    owners = np.repeat(np.arange(len(keys)), counts).tolist()
    suffixes = [text_of(raw) for raw in lists["suffixes"].flatten().to_pylist()]
    urls = samples.column("url").combine_chunks().dictionary_encode()
    contents = Contents(
        [f"{keys[owner]}.{suffix}" for owner, suffix in zip(owners, suffixes, strict=True)],
        urls.dictionary.to_pylist(),
        np.repeat(urls.indices.to_numpy().astype(np.int64), counts),
        lists["offsets"].flatten().to_numpy(),
        lists["sizes"].flatten().to_numpy(),
    )
    if FILES in samples.column_names:
        _by_file(contents, samples.column(FILES).combine_chunks().flatten())
    ends = [0, *np.cumsum(counts).tolist()]
    if not (empty or fields or captions or vectors):
        return contents, ends
    changes: dict[int, Callable[[bytes], bytes]] = {}
    added: list[tuple[int, str, bytes]] = []  # the sample, the name, the bytes
    usual = {each: EMPTY[each] for each in dict.fromkeys([*empty, *(["json"] if fields else [])])}
    in_tars = samples.column("url").to_pylist()
    for sample, (start, stop) in enumerate(itertools.pairwise(ends)):
        lower = [each.lower() for each in suffixes[start:stop]]
        if fields:
            where = f"{in_tars[sample]} {key_text(keys[sample])}"
            adding = _adding(fields[sample], keep_fields, where, left_alone)
            changes |= {start + at: adding for at, each in enumerate(lower) if each == "json"}
        made = usual
        if captions and (caption := captions[sample]) is not None:
            made = usual | {"txt": caption}
            changes |= {
                start + at: partial(_instead, caption) for at, each in enumerate(lower) if each == "txt"
            }
        for suffix, data in made.items():
            if suffix in lower:
                continue
            if fields and suffix == "json":
                data = add_fields(data, fields[sample]) or data
            added.append((sample, f"{keys[sample]}.{suffix}", data))
        for suffix, files in (vectors or {}).items():
            if (file := files[sample]) is not None:
                added.append((sample, f"{keys[sample]}.{suffix}", file))
    return _with(contents, changes, added, ends)


def fields_in(table: pa.Table, names: Sequence[str]) -> list[dict[str, Any]]:
    """Of each row, what its sample's JSON gets of columns, null where there is no such; none where none are named."""
    for name in names:
        if name not in table.column_names:  # no file that the tar draws from has it
            table = table.append_column(name, pa.nulls(len(table)))
    return list(table.select(names).to_pylist()) if names else []


def keep_texts(
    contents: Contents, keys: Sequence[str], ends: Sequence[int], captions: Sequence[bytes | None]
) -> int:
    """How many samples have a ``.txt`` of their own, and no caption that takes its place."""
    kept = 0
    for key, (start, stop), caption in zip(keys, itertools.pairwise(ends), captions, strict=False):
        there = (place for place in range(start, stop) if place not in contents.given)
        kept += caption is None and any(
            contents.names[place].removeprefix(f"{key}.").lower() == "txt" for place in there
        )
    return kept


def without_members(
    contents: Contents, ends: Sequence[int], places: Sequence[int]
) -> tuple[Contents, list[int]]:
    """The same without some members, by their places; and behind the last that is left of each sample, after 0."""
    stays = np.ones(len(contents.names), bool)
    stays[[*places]] = False
    left = np.flatnonzero(stays)
    now = {place: number for number, place in enumerate(left.tolist())}

    def moved(some: Mapping[int, Any]) -> dict[int, Any]:
        return {now[place]: each for place, each in some.items() if place in now}

    names = [contents.names[place] for place in left.tolist()]
    sources, offsets, sizes = (each[left] for each in (contents.sources, contents.offsets, contents.sizes))
    given, changes, made = (moved(each) for each in (contents.given, contents.changes, contents.made))
    before = [0, *np.cumsum(stays).tolist()]
    some = Contents(names, contents.urls, sources, offsets, sizes, given, changes, made)
    return some, [before[end] for end in ends]


def _by_file(contents: Contents, files: pa.Array) -> None:
    """Of members that are files of their own, null of the others."""
    paths = files.dictionary_encode()
    is_file = paths.indices.is_valid().to_numpy(zero_copy_only=False)
    places = paths.indices.fill_null(0).to_numpy() + len(contents.urls)
    contents.urls = [*contents.urls, *map(text_of, paths.dictionary.to_pylist())]
    contents.sources = np.where(is_file, places, contents.sources)


def _with(
    contents: Contents,
    changes: Mapping[int, Callable[[bytes], bytes]],
    added: Sequence[tuple[int, str, bytes]],
    ends: Sequence[int],
) -> tuple[Contents, list[int]]:
    """With changes, by place among what is there, and with members that come last in their samples."""
    after = np.array([ends[sample + 1] for sample, _, _ in added], np.int64)
    before = np.searchsorted(after, np.arange(len(contents.names)), side="right")  # of each that is there
    names = np.insert(np.array(contents.names, object), after, [name for _, name, _ in added])
    sources, offsets, sizes = (
        np.insert(each, after, -1) for each in (contents.sources, contents.offsets, contents.sizes)
    )
    given = {int(place) + at: data for at, (place, (_, _, data)) in enumerate(zip(after, added, strict=True))}
    moved = {place + int(before[place]): change for place, change in changes.items()}
    more = np.searchsorted(after, ends, side="right")
    whole = Contents(names.tolist(), contents.urls, sources, offsets, sizes, given, moved)
    return whole, (more + ends).tolist()


def _adding(
    fields: Mapping[str, Any], keep: bool, where: str, left_alone: list[str]
) -> Callable[[bytes], bytes]:
    def change(document: bytes) -> bytes:
        try:
            changed = add_fields(document, fields, keep=keep, anew=CROPPED.names)
        except ShardError as error:
            raise ShardError(f"{where}: {error}") from None
        if changed is None:
            left_alone.append(where)
            return document
        return changed

    return change


def _instead(data: bytes, before: bytes) -> bytes:
    return data


def text_of(raw: bytes) -> str:
    """A name as text, bytes that are not UTF-8 as surrogates."""
    return raw.decode("utf-8", "surrogateescape")
