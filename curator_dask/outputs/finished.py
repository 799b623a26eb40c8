"""Whether anything has changed since a command finished its output: known without a cluster, Dask or a model.

A run knows finished files by fingerprints, of which a model's weights are a part: so it loads them, on workers that it
starts. Most of that is spared where the same command has been done before. Then a note says of what it was done:
arguments, packages, machine, the state of the model's files, and the fingerprint of all that it wrote. Where all of
these are the same, and the files are there with what they were made of, a run would find nothing to do.

What cannot be known so is a reason to start workers, never to skip a file.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import curator_dask
from curator_dask import backend
from curator_dask.errors import ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.parquet import Footer, list_parquet, read_footer
from curator_dask.frames.record import FileRecord
from curator_dask.models.sources import Sources, State, cached_state, changed_since
from curator_dask.outputs.failed import remove_leftovers_of, say_lost
from curator_dask.outputs.lock import RunLock
from curator_dask.runs.parts import Part, told_part
from curator_dask.runs.summary import SaveSummary
from curator_dask.settings import home
from curator_dask.storage import Options, is_remote
from curator_dask.threads import in_threads
from curator_dask.webdataset.shards import PARTITION, Shard, ShardSet
from curator_dask.webdataset.stamps import stamp

if TYPE_CHECKING:
    import distributed

logger = logging.getLogger("curator_dask")

#: Notes that are kept: the last ones that were of use.
_NOTES = 1000
#: Beginnings of variables of the environment that may decide what is made.
_VARIABLES = ("CURATOR_DASK_", "DASK_", "HF_", "TIMM_", "TORCH")


class FinishedCommand:
    """What a command is about to do, to be compared with what it did before.

    Parameters
    ----------
    asked
        JSON-able: all that the command was told and that may decide what it makes.
    found, source
        The shards, and where their rows come from (`curator_dask.rows.reading.choose_source`).
    output
        Absolute path or URL of the folder.
    column
        Of the vectors.
    sources
        Of the model.
    device
        Of the workers that would be started.
    input_options, output_options
        For fsspec.
    part, all_shards
        The part of a run whose shards `found` are, and how many shards there are; None: they are all.
    """

    def __init__(
        self,
        asked: Mapping[str, Any],
        found: ShardSet,
        source: str,
        output: str,
        column: str,
        sources: Sources,
        device: str,
        input_options: Options = None,
        output_options: Options = None,
        part: Part | None = None,
        all_shards: int = 0,
    ) -> None:
        self._part, self._all_shards = part, all_shards
        self._started, self._since = time.monotonic(), time.time_ns()
        self._found, self._output, self._column, self.sources = found, output, column, sources
        self._input_options, self._output_options = input_options, output_options
        self._asked = {
            "asked": asked,
            "source": source,
            "output": output,
            "packages": _packages(),
            "python": [sys.version, sys.prefix],
            "system": platform.platform(),
            "hardware": backend.hardware(device),
            "environment": {k: v for k, v in os.environ.items() if k.startswith(_VARIABLES)},
        }
        self._files = sources.state()
        self._note = home() / "finished" / fingerprint({"asked": asked, "output": output})[:32]

    def summary(self) -> SaveSummary | None:
        """That of a run with nothing to do, which is logged; None where something has changed, or nothing is known.

        Raises
        ------
        OutputError
            Another run is writing there.
        """
        try:
            known, made, repository = self._note.read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError):
            return None
        if known != self._key(repository, ask=True):
            return None
        if not is_remote(self._output) and not Path(self._output).is_dir():
            return None  # removed: there is no place for a lock either
        with RunLock(self._output, self._output_options, self._part):
            footers = self._footers()
            if made != _made(footers, self._column) or not self._is_of_these_shards(footers):
                return None
            remove_leftovers_of(self._output)
        summary = SaveSummary(self._output, skipped=len(footers), fingerprint=made)
        if self._part is not None:
            summary.part = told_part(self._part, len(self._found), self._all_shards)
        told = [footer.told(name, self._column) for name, footer in footers.items()]
        say_lost(self._output, [report for _, report in told], self._output_options)
        for remarks, report in told:
            summary.add_remarks(remarks)
            summary.add_finished(report)
        summary.seconds = summary.startup_seconds = time.monotonic() - self._started
        logger.info("%s", summary)
        with contextlib.suppress(OSError):
            self._note.touch()
        return summary

    def remember(self, summary: SaveSummary, repository: str | None) -> None:
        """Leave a note of what was done, where all of it was.

        Parameters
        ----------
        summary
            Of the run.
        repository
            Of the hub, that timm took the weights from, where `Sources.asks_timm`.
        """
        key = self._key(repository or "", ask=False)
        if key is None or not summary.complete or not summary.fingerprint:
            return
        # Nobody is told where there is no room for a note: all that is lost is time.
        with contextlib.suppress(OSError):
            self._note.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._note.with_suffix(f".{uuid.uuid4().hex[:8]}")
            temporary.write_text(f"{key}\n{summary.fingerprint}\n{repository or ''}", encoding="utf-8")
            temporary.replace(self._note)
            notes = sorted(self._note.parent.iterdir(), key=lambda path: path.stat().st_mtime_ns)
            for old in notes[:-_NOTES]:
                old.unlink(missing_ok=True)

    def _key(self, repository: str, ask: bool) -> str | None:
        """Digest of all that decides the output but the shards' state; None where it is not known for sure."""
        files = self._files
        if self.sources.asks_timm and not repository:
            return None
        fetched: State | None = {}
        if repository := repository or self.sources.repository or "":
            fetched = cached_state(repository, ask)
        if files is None or fetched is None or self._asked["hardware"] is None:
            return None
        if not ask and (files != self.sources.state() or changed_since({**files, **fetched}, self._since)):
            return None  # which state was loaded cannot be told
        shards = [[shard.url, shard.name, shard.parquet] for shard in self._found.shards]
        return fingerprint({**self._asked, "shards": shards, "files": files, "fetched": fetched})

    def _footers(self) -> dict[str, Footer]:
        """Of the output's files, by name."""
        paths = sorted(list_parquet(self._output, self._output_options))
        names = [path.removeprefix(self._output).lstrip("/").removesuffix(".parquet") for path in paths]
        if self._part is not None:  # those of other parts are theirs to look at
            mine = {shard.name for shard in self._found}
            picked = [
                place
                for place, name in enumerate(names)
                if not {name, PARTITION.sub("", name)}.isdisjoint(mine)
            ]
            paths, names = [paths[each] for each in picked], [names[each] for each in picked]
        found = in_threads(lambda path: read_footer(path, self._output_options), paths)
        return dict(zip(names, found, strict=True))

    def _is_of_these_shards(self, footers: Mapping[str, Footer]) -> bool:
        """Whether the files were made of the shards as they are now, by runs that wrote nothing else since."""
        shards = {shard.url: shard for shard in self._found.shards}
        records = [footer.record for footer in footers.values() if footer.record is not None]
        if {record.url for record in records} != {*shards} or any(
            self._column in it.earlier for it in records
        ):
            return False
        pairs = [(shards[record.url or ""], record) for record in records]
        return all(in_threads(lambda pair: self._is_of(*pair), pairs))

    def _is_of(self, shard: Shard, record: FileRecord) -> bool:
        stamps = {"tar": shard.url, "parquet": shard.parquet}
        try:
            return all(
                (said := (record.shard or {}).get(kind)) is not None
                and url is not None
                and vars(stamp(url, self._input_options)) == said
                for kind, url in stamps.items()
                if kind == "tar" or kind in (record.shard or {})
            )
        except ShardError:
            return False


def repository_of(sources: Sources, model: str | None, client: distributed.Client | None) -> str | None:
    """Of the hub, that timm takes a model's weights from, where `Sources.asks_timm`: a worker has timm loaded."""
    if not sources.asks_timm or model is None:
        return None
    from curator_dask.cluster.workers import run_everywhere  # loads distributed
    from curator_dask.models.weights import hub_repository

    (repository,) = run_everywhere(functools.partial(hub_repository, model), client, most=1).values()
    return str(repository) if repository is not None else None


def _made(footers: Mapping[str, Footer], column: str) -> str:
    """The fingerprint of files together, empty where one is not as it was written."""
    prints = {}
    for name, footer in footers.items():
        prints[name] = footer.record.run_of(column)["fingerprint"] if footer.record is not None else ""
        if not prints[name] or not footer.is_finished(prints[name], columns=[column]):
            return ""
    return fingerprint(prints)


def _packages() -> list[Any]:
    """All that is installed, each with its version, and the state of this package's own files."""
    found: dict[Path, set[str]] = {}
    for folder in sys.path:
        with contextlib.suppress(OSError):
            names = os.listdir(folder or ".")  # noqa: PTH208
            found[Path(folder).absolute()] = {it for it in names if it.endswith((".dist-info", ".egg-info"))}
    # What a package carries within itself is a part of it: setuptools adds a folder of its own to the path once
    # something imports it, as torch does where it compiles.
    holders = {folder for folder, names in found.items() if names}
    installed = set().union(*(names for folder, names in found.items() if holders.isdisjoint(folder.parents)))
    own = Path(curator_dask.__file__).parent
    files = [(path, path.stat()) for path in sorted(own.rglob("*.py"))]
    states = [[str(path), seen.st_size, seen.st_mtime_ns] for path, seen in files]
    return [sorted(installed), curator_dask.__version__, states]
