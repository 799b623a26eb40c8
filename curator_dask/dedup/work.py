"""Where what lies between vectors and a result goes: a folder that all workers see, or one of a store."""

from __future__ import annotations

import json
import logging
import os
import posixpath
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator_dask.dedup.copies import forget_copies
from curator_dask.dedup.phases import WORK_SUFFIX, Phase
from curator_dask.errors import ConfigError, OutputError
from curator_dask.fingerprint import fingerprint
from curator_dask.outputs.placing import locate
from curator_dask.outputs.saving import check_apart, opened
from curator_dask.patience import patiently
from curator_dask.settings import check_local
from curator_dask.storage import Options, filesystem, is_remote, join, read_bytes, remove, walk
from curator_dask.threads import in_threads

logger = logging.getLogger("curator_dask")


@dataclass(frozen=True)
class Work:
    """The folder of the phases' files.

    Attributes
    ----------
    folder
        Absolute path, the same on every worker, or a URL.
    options
        For fsspec, where it is a URL.
    is_given
        It was chosen, so other results may have theirs there, too; else it belongs to one result, beside which it is.
    """

    folder: str
    options: Options = None
    is_given: bool = False

    @classmethod
    def of(
        cls, output: str, work: str | os.PathLike[str] | None, options: Options, folders: Sequence[str]
    ) -> Work:
        """The folder that is given, or else that beside the output.

        Parameters
        ----------
        output
            Absolute path or URL of the result.
        work
            What is given.
        options
            For fsspec, where it is, or `output` is, a URL.
        folders
            Of what is read and written, outside of which it must be.

        Raises
        ------
        ConfigError
            None is given, and nothing can be beside the output: it is all of a bucket.
        OutputError
            It is in one of the folders, or is no folder.
        """
        if work is None:
            if is_remote(output) and "/" not in output.partition("://")[2]:
                raise ConfigError(
                    f"{output}: is all of a bucket, so nothing can be beside it: give a folder in it, or another place"
                    " for what lies between as work= (--work)"
                )
            return cls(_checked(f"{output}{WORK_SUFFIX}", output), options if is_remote(output) else None)
        if isinstance(work, Path):  # to which a URL has one slash
            check_local(work)
        folder = locate(os.fspath(work), options)
        for each in folders:
            check_apart(each, folder)
        return cls(_checked(folder, output), options if is_remote(folder) else None, True)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep others out whose result is another; let go in the end what was copied of a store."""
        try:
            with opened(self.folder, self.options) if self.is_given else nullcontext():
                yield
        finally:
            if is_remote(self.folder):
                forget_copies(f"{self.folder}/")

    def phase(self, label: str, **parts: Any) -> Phase:
        """The files of a phase, told by all that decides what is in them."""
        return self.named(f"{label}-{fingerprint(parts)[:16]}")

    def named(self, name: str) -> Phase:
        """The files of a phase with such a name."""
        return Phase(join(self.folder, name), self.options)

    def told(self, label: str, name: str) -> Iterator[dict[str, Any]]:
        """What all phases of a label say in a file of JSON, of those that have it."""
        for folder in self._folders(f"{label}-"):
            try:
                yield json.loads(read_bytes(join(folder, name), self.options))
            except FileNotFoundError:
                continue

    def _folders(self, begin: str) -> list[str]:
        """Those in this folder whose names begin in such a way."""
        if not is_remote(self.folder):
            return [str(path) for path in Path(self.folder).glob(f"{begin}*")]
        fs, inside = filesystem(self.folder, self.options)
        try:
            found = patiently(lambda: fs.ls(inside, detail=False), self.folder)
        except FileNotFoundError:
            return []
        names = [posixpath.basename(each.rstrip("/")) for each in found]
        return [join(self.folder, name) for name in names if name.startswith(begin)]

    def remove(self, name: str) -> None:
        """Remove the files of a phase; where the folder belongs to one result, all of it."""
        folder = join(self.folder, name) if self.is_given else self.folder
        if not is_remote(folder):
            shutil.rmtree(folder, ignore_errors=True)
            return
        try:
            in_threads(lambda each: remove(join(folder, each), self.options), [*walk(folder, self.options)])
        except Exception as error:  # a store's own, of many types
            logger.warning("%s: could not be removed, and is of no more use: %r", folder, error)


def _checked(work: str, output: str) -> str:
    if not is_remote(work) and os.path.lexists(work) and not os.path.isdir(work):  # noqa: PTH112
        raise OutputError(
            f"{work}: a folder is expected there, or nothing, for what lies between the vectors and {output}; what"
            " is there is no folder. Move it away, or write to another path"
        )
    return work
