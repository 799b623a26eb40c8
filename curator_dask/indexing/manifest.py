"""What an index is of, and which files it is made of."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa

from curator_dask.dedup.phases import Phase
from curator_dask.errors import ConfigError, OutputError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.parquet import open_parquet, whole_footers
from curator_dask.frames.record import FileRecord
from curator_dask.indexing.contents import content_of
from curator_dask.outputs.given import given_files
from curator_dask.outputs.placing import locate
from curator_dask.storage import Options, join
from curator_dask.threads import in_threads
from curator_dask.webdataset.stamps import stamp
from curator_dask.words import counted, some_of_these

logger = logging.getLogger("curator_dask")

#: The file that says it; an index without it is not finished.
MANIFEST = "index.json"
_NAME = re.compile(r"[scm]-[0-9a-f]{16}(\.npy|\.ranks\.npy)?")
#: Of what is in the files: another number makes all of them anew.
VERSION = 1


@dataclass(frozen=True)
class File:
    """A Parquet file of the output.

    Attributes
    ----------
    name
        Below its folder.
    size, version
        Its `FileStamp`.
    rows
        How many it has.
    content
        Digest of its vectors and of the rows that they are of; empty where an index of an earlier version has not
        noted it.
    first
        `digest` of the file that had this content first.
    """

    name: str
    size: int
    version: str
    rows: int
    content: str = ""
    first: str = ""

    @property
    def digest(self) -> str:
        """What changes when its vectors do, or, before it is known of which content it is, the file."""
        state = {"name": self.name, "size": self.size, "version": self.version}
        return self.first or fingerprint(state)[:16]


@dataclass(frozen=True)
class Segment:
    """A part of the index: the vectors of some files, in the order of clusters.

    Attributes
    ----------
    name
        Begins the names of its files.
    files
        Names of the output's files in it, in their order.
    rows
        Vectors in it.
    """

    name: str
    files: tuple[str, ...]
    rows: int


@dataclass(frozen=True)
class Manifest:
    """What an index says of itself.

    Attributes
    ----------
    embeddings
        Path or URL of the output.
    column, dim, dtype
        Of its vectors: name, length, and how they are stored, ``"<f2"`` or ``"<f4"``, as in the output.
    files
        Of the output.
    segments
        Of the index.
    clusters
        How many.
    centroids
        Name of their file.
    fitted
        Vectors that the output had when they were made.
    aside
        Rows without a vector that can be compared, by why.
    measured
        Name of the file of what `Measure` has found.
    version
        See `VERSION`.
    """

    embeddings: str
    column: str
    dim: int
    dtype: str
    files: tuple[File, ...]
    segments: tuple[Segment, ...]
    clusters: int
    centroids: str
    fitted: int
    aside: dict[str, int]
    measured: str
    version: int = VERSION

    @property
    def vectors(self) -> int:
        """How many are in the index."""
        return sum(each.rows for each in self.segments)

    @classmethod
    def read(cls, folder: str) -> Manifest | None:
        """That of an index; None where there is none that is finished.

        Raises
        ------
        OutputError
            It is none of this version.
        """
        path = Path(folder, MANIFEST)
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            if said.get("version") != VERSION:
                raise OutputError(
                    f"{path}: is of an index of version {said.get('version')}, expected {VERSION}. Remove the folder,"
                    " and build it again"
                )
            found = cls(
                **{
                    **said,
                    "files": tuple(File(**each) for each in said["files"]),
                    "segments": tuple(
                        Segment(each["name"], tuple(each["files"]), each["rows"]) for each in said["segments"]
                    ),
                }
            )
            found._check()
            return found
        except FileNotFoundError:
            return None
        except OutputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(
                f"{path}: cannot be read as that of an index: {error}. Remove the folder, and build it again"
            ) from None

    def _check(self) -> None:
        """Raise ValueError where it has not been written by `write`: no name of a file in it leads elsewhere."""
        names = [*(each.name for each in self.segments), self.centroids, self.measured]
        if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
            raise ValueError(f"names of files that are none of an index: {names[:3]}")
        own = {each.name for each in self.files}
        if not all({*each.files} <= own for each in self.segments):
            raise ValueError("a segment is of files that the index does not name")
        rows = [*(each.rows for each in self.files), *(each.rows for each in self.segments)]
        numbers = [self.dim, self.clusters, self.fitted, *self.aside.values(), *rows]
        if not all(isinstance(number, int) and number >= 0 for number in numbers) or not self.dim:
            raise ValueError("a length that is no number")
        if not all(isinstance(said, str) for each in self.files for said in (each.content, each.first)):
            raise ValueError("a digest that is no text")
        if self.dtype not in ("<f2", "<f4"):
            raise ValueError(f"vectors of type {self.dtype!r}")

    def write(self, folder: str) -> None:
        """Put it there: from now on the index is this one."""
        with Phase(folder).writing(MANIFEST) as file:
            file.write(json.dumps(asdict(self)).encode())

    def check_of(self, folder: str, embeddings: str, column: str) -> None:
        """Raise ConfigError where an index is of something else."""
        if (self.embeddings, self.column) != (embeddings, column):
            raise ConfigError(
                f"{folder}: is the index of {self.column!r} of {self.embeddings}, not of {column!r} of {embeddings}."
                " Give another folder"
            )


@dataclass(frozen=True)
class Source:
    """The output that an index is of, as it is now.

    Attributes
    ----------
    folder, options
        Path or URL; for fsspec.
    column
        Of the vectors.
    files
        In order.
    """

    folder: str
    options: Options
    column: str
    files: tuple[File, ...]

    @classmethod
    def find(cls, path: str, column: str, options: Options, known: Sequence[File] = ()) -> Source:
        """Look at the files; nothing is read of those that are known.

        Of a known file that has changed the vectors are read: where they and their rows are what they were, as `score`
        and `join` leave them, it is the same.

        Raises
        ------
        OutputError
            There are none, or one has no such column.
        """
        folder = locate(path, options)
        names = given_files(folder, options)
        stamps = in_threads(lambda name: stamp(join(folder, name), options), names)
        before = {(each.name, each.size, each.version): each for each in known}
        new = [
            join(folder, name)
            for name, state in zip(names, stamps, strict=True)
            if (name, state.size, state.version) not in before
        ]
        footers = whole_footers(new, options) if new else {}
        for each, footer in footers.items():
            if column not in footer.columns:
                raise OutputError(
                    f"{each}: has no column {column!r} of vectors; "
                    f"it has {some_of_these(footer.columns, column)}. Give the name of theirs"
                    " (--column), or the folder that embed wrote to"
                )
        files = []
        for name, state in zip(names, stamps, strict=True):
            there = before.get((name, state.size, state.version))
            files.append(there or File(name, state.size, state.version, footers[join(folder, name)].rows))
        was = {each.name: each for each in known if each.content}
        changed = [
            at
            for at, each in enumerate(files)
            if (old := was.get(each.name)) is not None and old is not each and old.rows == each.rows
        ]
        if changed:
            logger.info(
                "%s: %s changed since the index was made: looking whether the vectors have",
                folder,
                counted(len(changed), "file"),
            )
        contents = in_threads(lambda at: content_of(join(folder, files[at].name), column, options), changed)
        for at, content in zip(changed, contents, strict=True):
            old = was[files[at].name]
            if content == old.content:
                files[at] = replace(files[at], content=content, first=old.digest)
        return cls(folder, options, column, tuple(files))

    def path(self, name: str) -> str:
        """Of a file."""
        return join(self.folder, name)

    def differences(self, manifest: Manifest) -> str:
        """How the files differ from those of an index, in words; empty where they do not."""
        now, then = {each.name: each for each in self.files}, {each.name: each for each in manifest.files}
        added = [name for name in now if name not in then]
        gone = [name for name in then if name not in now]
        changed = [name for name in now if name in then and now[name].digest != then[name].digest]
        parts = [
            f"{counted(len(names), 'file')} {word} ({names[0]}{' for example' if len(names) > 1 else ''})"
            for names, word in ((added, "added"), (changed, "changed"), (gone, "removed"))
            if names
        ]
        return ", ".join(parts)

    def shape(self) -> tuple[int, str]:
        """Length of a vector, 0 where nothing says it, and how they are to be stored."""
        dim, kinds = 0, set()
        for each in self.files:
            with open_parquet(self.path(each.name), self.options) as file:
                field = file.schema_arrow.field(self.column)
                record = FileRecord.parse(file.schema_arrow.metadata)
                said = {} if record is None else record.embeddings.get(self.column, {})
                kind = getattr(field.type, "value_type", pa.float32())
                kinds.add("<f2" if pa.types.is_float16(kind) else "<f4")
                dim = dim or int(getattr(field.type, "list_size", 0) or said.get("dim") or 0)
            if dim and "<f4" in kinds:
                break
        return dim, "<f4" if "<f4" in kinds else "<f2"
