"""Where an export goes: the folder of the tars, and the one beside it with what is not for readers of tars.

Beside, not in it: readers of a folder (Polars, DuckDB's ``**``, datasets of Hugging Face) take all Parquet files below
it for the same rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import posixpath
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from curator_dask.errors import OutputError
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import read_footer, without_leftovers
from curator_dask.outputs.export_sizes import remove_sizes, sizes_there
from curator_dask.outputs.left_out import UNBLURRED
from curator_dask.outputs.lock import RunLock, parts_there
from curator_dask.outputs.placing import is_there, put
from curator_dask.outputs.saving import check_writable, missing_folders, path_beside, remove_empty
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.shard_names import PARTS, is_shard, names_of, shortened, strays
from curator_dask.outputs.twins_told import NOTE, SUFFIX
from curator_dask.runs.parts import Part
from curator_dask.storage import is_remote, join, read_bytes, remove, walk
from curator_dask.words import counted

logger = logging.getLogger("curator_dask")

_LOOKS, _LOOK_SECONDS = 20, 0.1  # for the note that another part is about to write

#: Of what is noted of an export: what identifies the table of duplicates.
WITHOUT = "without_state"
#: The card of a dataset, as Hugging Face's hub and datasets look for it.
CARD = "README.md"


class ExportPlace:
    """The folder of new tars, and the one beside it.

    Parameters
    ----------
    target
        Where the tars go.
    part
        Which of them are written, beside others; None: all.

    Raises
    ------
    ConfigError
        There can be no folder beside it.
    """

    def __init__(self, target: Folder, part: Part | None = None) -> None:
        self.target, self.beside = target, path_beside(target.path, SUFFIX, "tars")
        self.part = part
        self._lock = RunLock(target.path, target.options, part)

    @property
    def has_tars(self) -> bool:
        """Whether an export has begun there, and tars are there."""
        begun = (self._note() or {}).get("export") is not None
        return begun and any(map(is_shard, walk(*self.target)))

    @property
    def told(self) -> dict[str, Any]:
        """What the last export there says of itself; empty where there was none."""
        return self._note() or {}

    @property
    def tars(self) -> set[str]:
        """Names of the tars that it has, or was to have."""
        return names_of(self.told.get("tars") or {})

    @property
    def last_call(self) -> set[str]:
        """Those of them that were not there before it."""
        added = self.told.get("added")
        return self.tars if added is None else {*added}

    @property
    def is_added_to(self) -> bool:
        """Whether tars were added to others that stay."""
        return self.last_call < self.tars

    @property
    def without(self) -> str | None:
        """What identifies the table of duplicates that the last call left out; None: there was none."""
        return (self.told.get("settings") or {}).get(WITHOUT)

    def folder(self, name: str) -> Folder:
        """A folder of those beside the tars."""
        return Folder(join(self.beside, name), self.target.options)

    @contextlib.contextmanager
    def open(self, dry_run: bool = False, keep_rows: bool = False) -> Iterator[None]:
        """Keep other runs out, and remove what dead ones have left; and the folders that would be left empty.

        Parameters
        ----------
        dry_run
            What comes to be beside the tars is removed at the end, unless an export had begun there before.
        keep_rows
            It is not: models made the rows, and the export itself takes them over.

        Raises
        ------
        OutputError
            It cannot be written to, another run writes there, or what is beside is not of an export.
        """
        local = [each for each in (self.target.path, self.beside) if not is_remote(each)]
        missing = [folder for each in local for folder in missing_folders(each)]
        finished = False
        try:
            for each in local:
                check_writable(each)
            with self._lock, without_leftovers(*local):
                is_new = self._note() is None
                if is_new and self._is_foreign():
                    raise OutputError(
                        f"{self.beside}: is there, and is not of an export: what belongs to {self.target.path} goes"
                        " there. Move it away, or give another path"
                    )
                if is_new and self._note() is None:  # which another part may have written meanwhile
                    self._tell({"export": None})
                try:
                    yield
                    finished = not dry_run
                finally:
                    if is_new and not finished and not self._others_at_work():
                        self._forget(dry_run and not keep_rows)
        finally:
            if not finished:
                remove_empty(missing)

    def _is_foreign(self) -> bool:
        """Whether something is beside the tars, and no note; of parts another may be about to write it."""
        for left in reversed(range(1 if self.part is None else _LOOKS)):
            if not any(True for _ in walk(self.beside, self.target.options)) or self._note() is not None:
                return False
            time.sleep(_LOOK_SECONDS if left else 0.0)
        return True

    def _others_at_work(self) -> bool:
        if self.part is None:
            return False
        return bool({*parts_there(self.target.path, self.target.options).living} - {self.part})

    def check_held(self) -> None:
        """Raise OutputError where another run has come meanwhile: see `RunLock.check_held`."""
        self._lock.check_held()

    def check_parts_at_work(self, this: str) -> None:
        """Raise OutputError where another part is at work on another export; `this` tells it from others."""
        if self.part is None:
            return
        for part, made in self._lock.declare({"export": this}).items():
            if made.get("export", this) != this:
                raise OutputError(
                    f"{self.target.path}: part {part} of an export is at work there, of other rows or by other"
                    " settings. Give all parts the same, or another folder"
                )

    def _forget(self, everything: bool) -> None:
        """Remove what is beside the tars, where it is the note alone or `everything` is to go."""
        names = [*walk(self.beside, self.target.options)]
        if everything or names == [NOTE]:
            for name in names:
                remove(join(self.beside, name), self.target.options)
        if not is_remote(self.beside):
            remove_empty([Path(folder) for folder, *_ in os.walk(self.beside, topdown=False)][:-1])

    def clear(
        self,
        names: Sequence[str],
        todo: Sequence[int],
        this: str,
        overwrite: bool,
        *,
        only_look: bool = False,
        settings: Mapping[str, Any] | None = None,
        stay: Collection[str] | None = None,
    ) -> None:
        """See that the tars can be written, and remove those of an earlier export that are not to be there.

        Parameters
        ----------
        names
            Of all tars, without ``.tar``.
        todo
            Numbers of those that are not finished.
        this
            What tells this export from others: where one was interrupted, what it has written is written over.
        overwrite
            So is what others have written.
        only_look
            Remove nothing.
        settings
            By which the tars are made, for those that are added later.
        stay
            Those of the tars that stay as they are, to which others are added; None: none are.

        Raises
        ------
        OutputError
            Something would be replaced, or be among the tars, that must not be.
        """
        folder, options = self.target
        manifest = self.folder("manifest")
        there = {name for name in walk(folder, options) if name.endswith(PARTS)}
        note = self._note() or {}
        own = {name.removesuffix(".parquet") for name in walk(manifest.path, manifest.options)}
        own |= names_of(note.get("tars") or {})  # of those that a run that died has not finished, too
        stray = strays(there, names)
        if stay is not None:  # all else of its own is what a call that died has left
            there = {name for name in there if posixpath.splitext(name)[0] not in own}
            stray = [name for name in stray if posixpath.splitext(name)[0] not in own]
        self._check_links(names)
        if not own:
            self._check_no_rows(there)
        if note.get("export") != this and not overwrite:
            if not stay and note.get("export") is None and (sizes := sizes_there(self.target, names)):
                self._refuse(posixpath.relpath(sizes[0], folder), "is not of an export that has been here")
            in_the_way = [f"{names[number]}{part}" for number in todo for part in PARTS]
            for name in in_the_way:
                if name in there:
                    self._refuse(name, "was made of other samples, or by other settings", stay is not None)
            if stray:
                why = "is not of this export: who reads the folder finds its samples, too"
                self._refuse(stray[0], why, stay is not None)
        if only_look:
            return
        if (
            note.get("export") != this and not stay
        ):  # before the tars: a run that dies must not leave what speaks of them
            remove_sizes(self.target, [*own, *names])
            if self._own_card(note):
                remove(join(folder, CARD), options)
                note.pop("card")
        for name in sorted(own - {*names}):
            for part in PARTS:
                remove(join(folder, f"{name}{part}"), options)
            remove(manifest.file(f"{name}.parquet"), options)
            remove(self.folder(UNBLURRED).file(f"{name}.parquet"), options)
        foreign = [name for name in stray if posixpath.splitext(name)[0] not in own]
        if foreign:
            logger.warning(
                "%s: %s there, %s for example, not of this export: who reads the folder finds them, too",
                *(folder, counted(len(foreign), "file"), foreign[0]),
            )
        # Else a tar that is replaced when the run dies would pass for the one that its manifest still speaks of; and
        # before the note, whose settings are not those of what such a manifest speaks of: tars may be added by it.
        for number in todo:
            for each in (manifest, self.folder(UNBLURRED)):
                remove(each.file(f"{names[number]}.parquet"), options)
        said = {**note, "export": this, "tars": shortened(names), "settings": settings}
        said |= {"added": None if stay is None else sorted({*names} - {*stay})}
        self._tell(said)
        self._make_folders(names, own)

    def _check_no_rows(self, there: Collection[str]) -> None:
        """Raise OutputError where the folder has rows of an output, whose vectors would go, overwritten or not."""
        alone = [name for name in there if name.endswith(".parquet") and f"{name[:-8]}.tar" not in there]
        for name in sorted(alone)[:1]:
            path = join(self.target.path, name)
            footer = read_footer(path, self.target.options)
            if footer.record is not None and URL_COLUMN in footer.columns:
                raise OutputError(
                    f"{path}: is a file of rows, as embed and filter write them, which tars would replace or stand"
                    " among. Give a folder of its own for the export"
                )

    def _check_links(self, names: Sequence[str]) -> None:
        """Raise OutputError where a folder of splits or values is a link: it may lead to tars that are read from."""
        if is_remote(self.target.path):
            return
        for below in sorted(_folders_of(names)):
            path = Path(self.target.path, below)
            if path.is_symlink():
                raise OutputError(
                    f"{path}: is a link to {os.path.realpath(path)}, and a folder is expected, whose tars may be"
                    " replaced. Remove the link, or give another path"
                )

    def _make_folders(self, names: Sequence[str], own: Collection[str]) -> None:
        """Make those that splits and values need, and remove those that they have left empty."""
        if is_remote(self.target.path):
            return
        for below in sorted({posixpath.dirname(name) for name in names}):
            check_writable(join(self.target.path, below))
        gone = sorted(_folders_of(own) - _folders_of(names), reverse=True)  # the inner ones first
        remove_empty(
            [
                Path(each.path, below)
                for each in (self.target, self.folder("manifest"), self.folder(UNBLURRED))
                for below in gone
            ]
        )

    def remove_emptied(self) -> None:
        """Remove the folders of tars none of which is there, as no sample is left for them."""
        if not is_remote(self.target.path):
            gone = sorted(_folders_of(self.tars), reverse=True)  # the inner ones first
            remove_empty([Path(self.target.path, below) for below in gone])

    def _own_card(self, note: Mapping[str, Any]) -> bool:
        """Whether the card that is there is as it was written, by nobody else."""
        known, path = (note.get("card") or {}).get("digest"), join(self.target.path, CARD)
        if known is None:
            return False
        try:
            return bool(_digest(read_bytes(path, self.target.options)) == known)
        except OSError:  # not there, a folder, or what must not be read
            return False

    def put_card(self, of: str, make: Callable[[], str]) -> str | None:
        """Write the card, unless there is one, and say where it is; None where there is a user's.

        Parameters
        ----------
        of
            What tells what it says from what another says: the same is not written again.
        make
            Gives its text.
        """
        path, note = join(self.target.path, CARD), self._note() or {}
        if is_there(path, self.target.options):
            if not self._own_card(note):
                is_file = is_remote(path) or os.path.isfile(path)  # noqa: PTH113
                return path if (note.get("card") or {}).get("of") == of and is_file else None
            if note["card"].get("of") == of:
                return path
            remove(path, self.target.options)
        text = make().encode("utf-8", "backslashreplace")
        # Known before it is there: else one that was written as the run died would be taken for a user's.
        self._tell({**note, "card": {"of": of, "digest": _digest(text)}})
        put(path, text, self.target.options)
        return path

    def check_space(self, needed: int, by_old_sizes: bool = False) -> int | None:
        """Bytes that are free, None in a store; raises OutputError where so many are not, unless images shrink."""
        if is_remote(self.target.path):
            return None
        free = shutil.disk_usage(self.target.path).free
        if needed > free and not by_old_sizes:
            raise OutputError(
                f"{self.target.path}: the new tars need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: make"
                " room, give another path, or choose fewer samples"
            )
        return free

    def _refuse(self, name: str, why: str, adding: bool = False) -> None:
        mend = (
            "Move it away, or write to another path"
            if adding
            else "Write to another path, or use overwrite=True (--overwrite), by which tars of an earlier export go; or"
            " append=True (--append), by which they stay, and what is new is added"
        )
        raise OutputError(f"{join(self.target.path, name)}: is there, and {why}. {mend}")

    def _note(self) -> dict[str, Any] | None:
        """What the last export there says of itself; None where there was none."""
        try:
            found = json.loads(read_bytes(join(self.beside, NOTE), self.target.options))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _tell(self, note: Mapping[str, Any]) -> None:
        if note != self._note():
            put(join(self.beside, NOTE), json.dumps(note).encode(), self.target.options)


def _folders_of(names: Collection[str]) -> set[str]:
    """The folders that files are in, and those that these are in."""
    found = {posixpath.dirname(name) for name in names}
    return (found | {posixpath.dirname(folder) for folder in found}) - {""}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
