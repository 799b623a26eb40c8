"""Where a fetch goes: the folder of the shards, and the one beside it with what is not for readers of shards."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from curator_dask.errors import OutputError
from curator_dask.fetching.files import ShardFiles
from curator_dask.frames.parquet import without_leftovers
from curator_dask.outputs.lock import RunLock
from curator_dask.outputs.placing import put
from curator_dask.outputs.saving import check_writable, missing_folders, path_beside, remove_empty
from curator_dask.outputs.selecting import Folder
from curator_dask.runs.parts import Part
from curator_dask.storage import exists, is_remote, join, read_bytes, walk
from curator_dask.words import counted

#: Ends the name of the folder beside the shards.
SUFFIX = ".fetch"
_NOTE = "run.json"
_SHARDS = (".tar", ".parquet")


class FetchPlace:
    """The folder of the shards, and the one beside it.

    Parameters
    ----------
    target
        Where the shards go.
    part
        That is fetched there, beside others; None: all.

    Raises
    ------
    ConfigError
        There can be no folder beside it.
    """

    def __init__(self, target: Folder, part: Part | None = None) -> None:
        self._part = part
        self._lock = RunLock(target.path, target.options, part)
        beside = Folder(path_beside(target.path, SUFFIX, "shards"), target.options)
        self.files = ShardFiles(target, beside)

    @property
    def staged(self) -> Folder:
        """Where tables go that are no Parquet."""
        beside = self.files.beside
        return Folder(join(beside.path, "table"), beside.options)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Keep other runs out, and remove what dead ones have left; and the folders that would be left empty.

        Raises
        ------
        OutputError
            It cannot be written to, another run writes there, or what is there is not of a fetch.
        """
        target, beside = self.files.target, self.files.beside
        local = [each.path for each in (target, beside) if not is_remote(each.path)]
        missing = [folder for each in local for folder in missing_folders(each)]
        try:
            for each in local:
                check_writable(each)
            with self._lock, without_leftovers(*local):
                if self.note is None:
                    self._check_foreign()
                yield
        finally:
            remove_empty(missing)

    def check_held(self) -> None:
        """Raise OutputError where another run has come meanwhile: see `RunLock.check_held`."""
        self._lock.check_held()

    def _check_parts_at_work(self, note: Mapping[str, Any]) -> None:
        """Raise OutputError where another part is at work that fetches otherwise."""
        for part, made in self._lock.declare({"fetch": note["settings"]}).items():
            before = {"settings": made.get("fetch", note["settings"])}
            if before["settings"] != note["settings"]:
                raise OutputError(
                    f"{self.files.target.path}: part {part} of a fetch is at work, {_difference(before, note)}. Give"
                    " all parts the same settings, or another folder"
                )

    def _check_foreign(self) -> None:
        target = self.files.target
        there = next((name for name in walk(*target) if name.endswith(_SHARDS)), None)
        if there is not None and self.note is None:  # which another part may have written meanwhile
            raise OutputError(
                f"{target.path}: has {there}, which is not of a fetch: give another folder for the shards"
            )

    @property
    def note(self) -> dict[str, Any] | None:
        """Of which fetch the shards are; None: of none."""
        beside = self.files.beside
        path = beside.file(_NOTE)
        try:
            if not exists(path, beside.options):
                return None
            found = json.loads(read_bytes(path, beside.options))
        except ValueError:
            return {}
        except Exception as error:  # a store's own, of many types
            raise OutputError(f"{path}: cannot be read: {error!r}") from error
        return found if isinstance(found, dict) else {}

    def claim(
        self, note: Mapping[str, Any], marks: Mapping[str, str], overwrite: bool, append: bool = False
    ) -> None:
        """Note that the shards are of this fetch, and remove those that are not.

        Parameters
        ----------
        note
            What identifies it: its ``settings``, its ``table``.
        marks
            Of its shards the fingerprints, by name.
        overwrite
            Shards of another one are removed. Where all that are there would be the same, as the table has got further
            rows, none is, and it is not needed.
        append
            It has: the last shard that is there may be another, as it was not full.

        Raises
        ------
        OutputError
            There are such, and they are not to be.
        """
        if self._part is not None:
            self._check_parts_at_work(note)
        before = self.note
        if before == dict(note):
            return
        if before is not None:
            names = self._names()
            others = [name for name in names if not self._is_same(name, marks)]
            is_last = others == [*names][-1:] and before.get("settings") == note["settings"]
            if others and not (overwrite or _goes_on(before, note) or (append and is_last)):
                mend = "replace them with overwrite=True (--overwrite): shards that would be the same stay"
                if is_last:
                    mend = (
                        "where the table has grown and the last shard was not full, make that one anew with append=True"
                        " (--append)"
                    )
                raise OutputError(
                    f"{self.files.target.path}: has shards of another fetch, {_difference(before, note)}: of"
                    f" {counted(len(names), 'shard')} {len(others):,} would go. Give another folder, or {mend}"
                )
            gone = [name for name in others if name not in marks]
            if self._part is not None and gone:  # another part may be at work
                raise OutputError(
                    f"{self.files.target.path}: has {counted(len(gone), 'shard')} of another fetch that none of this"
                    f" one would replace, {gone[0]} for example, and a part removes none. Run once without part"
                    " (--part), or give another folder"
                )
            for name in others if self._part is None else ():  # each part writes its own anew
                self.files.remove(name)
        beside = self.files.beside
        put(beside.file(_NOTE), json.dumps(note).encode(), beside.options)

    def _is_same(self, name: str, marks: Mapping[str, str]) -> bool:
        return name in marks and self.files.finished(name, marks[name]) is not None

    def _names(self) -> Collection[str]:
        found = (name for name in walk(*self.files.target) if name.endswith(_SHARDS) and "/" not in name)
        return sorted({name.rpartition(".")[0] for name in found if name.rpartition(".")[0].isdecimal()})


def _goes_on(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether it is the same fetch, of more rows."""
    limits = [float(each.get("limit") or "inf") for each in (before, now)]
    return {**before, "limit": None} == {**now, "limit": None} and limits[0] < limits[1]


def _sizes(smaller: Mapping[str, Any] | None) -> str:
    """What is made of images that are too large, in words."""
    if not smaller:
        return "as they came"
    return "made smaller by " + ", ".join(f"{name}={each!r}" for name, each in smaller.items() if each)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = before.get("settings") or {}, now["settings"]
    for name, value in new.items():
        if old.get(name) != value:
            if name == "smaller":
                return f"whose images are {_sizes(old.get(name))} and not {_sizes(value)}"
            return f"whose {name} is {old.get(name)!r} and not {value!r}"
    if {**before, "limit": None} == {**now, "limit": None}:
        return f"of more rows than limit={now.get('limit')}"
    return "of another table, or of other rows or columns of this one"
