"""What a run must not replace: files that something else has made, and rows that lie there in another way."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from curator_dask.errors import OutputError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import Footer, read_record
from curator_dask.frames.record import CHOSEN, FileRecord, made_by_model
from curator_dask.outputs.failed import ERRORS_FORMERLY, list_errors
from curator_dask.outputs.keeping import Kept, pairs_with
from curator_dask.outputs.writing import Output
from curator_dask.runs.lineage import Lineage
from curator_dask.runs.sink import Job
from curator_dask.runs.targets import Target
from curator_dask.storage import Options, is_remote, local_path
from curator_dask.webdataset.finding import discover_images
from curator_dask.webdataset.folders import AFTER, FIRST, FolderShard, is_folder_shard
from curator_dask.webdataset.parquet import SUFFIX, file_of, is_parquet_shard
from curator_dask.webdataset.shards import PARTITION
from curator_dask.words import counted

#: By what a column has, how it gets another name.
_OPTIONS = {
    "a vector": "image_embedding_column (--column)",
    "a class": "prefix (--prefix)",
    "a caption": "column (--column)",
    "boxes": "prefix (--prefix)",
    "answers": "column (--column)",
}
#: In what makes an embedding: what earlier files say of the same.
FORMERLY = "formerly"


def dataset_of(lineage: Lineage) -> str | None:
    """A digest of all shards that mixed partitions may come from; None if they are not known."""
    if lineage.inputs is None:
        return None
    return fingerprint({"shards": sorted({part.shard.url for part in lineage.inputs})})


def check_own_files(lineage: Lineage, paths: Sequence[str], schema: pa.Schema) -> None:
    """Protect the dataset's own Parquet files where the run writes files into its directory.

    Raises
    ------
    OutputError
        They would lose columns, or files with the same rows would come to lie beside them.
    """
    reader = lineage.reader
    lost = [name for name in getattr(reader, "schema", schema).names if name not in schema.names]
    if lost and getattr(reader, "source", None) == "parquet":
        raise OutputError(
            f"writing into the dataset's own Parquet files would drop their columns {lost}. Keep these columns, give"
            " another path, or use overwrite=True"
        )
    if lineage.ranges is None:
        owned = any(part.shard.parquet is not None for part in lineage.inputs or ())
        beside = [*paths] if owned else []
    else:
        companions = (part.shard.parquet for part in lineage.ranges)
        beside = [path for path, own in zip(paths, companions, strict=True) if own not in (None, path)]
    if beside:
        raise OutputError(
            f"{counted(len(beside), 'file')}, {beside[0]} for example, would lie beside the dataset's own"
            f" Parquet files and"
            " hold the same rows once more. Give another path, or use overwrite=True"
        )


def check_beside_images(lineage: Lineage, folder: str) -> None:
    """Keep an output out of folders whose Parquet files have the images: they would be replaced, or be found among it.

    Raises
    ------
    OutputError
        It is such a folder, or lies in one.
    """
    shards = [
        part.shard for part in lineage.ranges or lineage.inputs or () if is_parquet_shard(part.shard.url)
    ]
    there = f"{_real(folder).rstrip('/')}/"
    folders = {posixpath.dirname(file_of(shard.url)) for shard in shards}
    if len(folders) == 1:  # of several the common folder may be that of much else
        folders = {file_of(shards[0].url)[: -len(f"/{shards[0].name}{SUFFIX}")] or "/"}
    for own in folders:
        if there.startswith(f"{_real(own).rstrip('/')}/"):
            raise OutputError(
                f"{folder}: {own} has the Parquet files with the images, and who reads them would find the output among"
                " them: give a folder beside it"
            )


def _real(folder: str) -> str:
    return folder if is_remote(folder) else os.path.realpath(local_path(folder))


_MIXED = re.compile(r"part-\d{5}")


def find_strays(lineage: Lineage, paths: Sequence[str], there: frozenset[str], output: Output) -> list[str]:
    """Files that an earlier run wrote of the same shards, cut in another way, and what it dropped from them.

    Not those with the `paths` of this run.

    Only what surely holds the same rows: other datasets may have their outputs below the same folder.

    Raises
    ------
    OutputError
        There are some, and `overwrite` does not allow to remove them.
    """
    others = there.difference(paths) if there else there
    if not others:
        return []
    inputs = {part.shard.name: part.shard for part in lineage.inputs or ()}
    others = others.difference({part.shard.parquet for part in lineage.inputs or lineage.ranges or ()})
    dataset = dataset_of(lineage)
    names = {path: path.removeprefix(output.folder).lstrip("/").removesuffix(".parquet") for path in others}
    options = lineage.reader.storage_options if lineage.reader is not None else None
    urls = {shard.url for shard in inputs.values()}
    # A shard has another name where others in other folders come to it: then it was 00001, and is a/00001.
    last = {posixpath.basename(name) for name in inputs}
    of_images = _Images(urls, options)
    found = []
    for path in sorted(others):
        name = PARTITION.sub("", names[path])
        shard = inputs.get(name)
        is_former = name.startswith(f"{ERRORS_FORMERLY}/")  # failed rows, which are of no partition
        may_be = shard is not None or (posixpath.basename(name) in last and not is_former)
        if not may_be and not of_images.may_be(names[path]) and not _MIXED.fullmatch(names[path]):
            continue
        record = read_record(path, output.options)
        if record is None:
            continue
        same = record.url in urls if may_be else not record.shard and record.dataset == dataset
        if same or of_images.were(record.url):
            found.append(path)
    if found and not output.overwrite:
        raise OutputError(
            f"{output.folder} has {counted(len(found), 'file')} of the same rows in other partitions,"
            f" {found[0]} for example: a reader of the folder would see rows twice. Name the shards as before, with"
            " the same rows_per_partition, or samples_per_shard, write to another path, or use overwrite=True"
            " (--overwrite), which removes them when all is written"
        )
    gone = {names[path] for path in found}
    errors = list_errors(output.folder, output.options) if found else {}
    return [*found, *sorted(path for path, name in errors.items() if name in gone)]


class _Images:
    """Tells the outputs of shards that a folder of image files has no more: other shards have their images now.

    Parameters
    ----------
    urls
        Of shards of a run; of tars it knows nothing.
    options
        For fsspec.
    """

    def __init__(self, urls: Iterable[str], options: Options) -> None:
        self._options = options
        shards = map(FolderShard.of, filter(is_folder_shard, urls))
        self._folders = {shard.folder: shard.samples for shard in shards}
        self._now: dict[str, frozenset[str]] = {}  # by folder, looked at when it is asked for

    def may_be(self, name: str) -> bool:
        """Whether a file's name may be that of such an output."""
        return bool(self._folders) and name.rpartition("/")[2].startswith((FIRST, AFTER))

    def were(self, url: str | None) -> bool:
        """Whether a shard with this url was one of the folder, and is not now."""
        if url is None or not is_folder_shard(url) or FolderShard.of(url).folder not in self._folders:
            return False
        folder = FolderShard.of(url).folder
        if folder not in self._now:
            found = discover_images(folder, self._folders[folder], self._options)
            self._now[folder] = frozenset(shard.url for shard in found)
        return url not in self._now[folder]


def conflict(
    target: Target,
    existing: Footer,
    schema: pa.Schema,
    kept: Kept,
    job: Job,
    in_place: bool,
) -> str | None:
    """Why a file that is there must not be replaced by a target, in words; None if it may.

    Parameters
    ----------
    target, existing
        The target, and what the file says of itself.
    schema, kept, job
        What would be written, what of it other runs have made, and what is to be done.
    in_place
        It is a file of the dataset's own folder.
    """
    record, columns = existing.record, existing.columns
    # The dataset's own file that its rows are read from may be written over; where it cannot be read, its shard fails.
    is_own = in_place and target.path == target.companion and target.source == "parquet"
    if existing.fault:
        return None if is_own else existing.fault
    if record is not None and record.is_filtered:
        return "has the rows alone that passed a filter, and the others would be there again"
    models = {} if record is None else record.models
    if other := made_otherwise(record, job):
        return other
    for name, info in job.models.items():
        other_name = _OPTIONS[made_by_model(info)]
        if name in columns and name not in models:
            if name in job.made:
                return f"has a column {name!r} that was not made by curator_dask"
            return f"has a column {name!r} that no model has made: give this one another name by {other_name}"
    for step in job.steps:
        taken = [name for name in step.columns if name in models and name not in job.models]
        if taken and taken[0] in schema.names:
            return (
                f"column {taken[0]!r} was made by {models[taken[0]].get('source', 'a model')}, and {step.label} would"
                " take its place: give this one another name (as by prefix=, --prefix)"
            )
    if record is not None:
        mine = (target.shard or {}).get("url")
        if record.url is not None and mine is not None and record.url != mine:
            return f"was made of {record.url}, not of {mine}"
        if record.url is None and mine is None and record.dataset != target.dataset:
            return "was made of other shards"
    used = [name for name in (URL_COLUMN, ERROR_COLUMN) if name in columns and name in schema.names]
    if record is None and used:
        return f"has columns {used} of its own, whose names curator_dask uses"
    pairs = pairs_with(target, existing, job.id_col)
    lost = sorted(name for name in models if name not in schema.names and not (pairs and name in kept.models))
    if lost:
        what = "embeddings" if record is not None and {*lost} <= {*record.embeddings} else "columns"
        return (
            f"has {what} {lost} that this run would not write: they are kept only where both runs write the key,"
            " __url__ and image_error of each row, of the same partitions of the shards, and apply no function to the"
            " rows"
        )
    if record is not None and kept:
        stale = [
            name
            for name in columns
            if name in kept.types.names and name not in (*kept.models, *target.keep, ERROR_COLUMN)
        ]
        if stale:
            return (
                f"has columns {stale} that this run would not write, and the shard has changed since they were made, or"
                " vectors that they may be of are made anew"
            )
    if record is None and not is_own:
        return "was not written by curator_dask"
    return None


def made_otherwise(record: FileRecord | None, job: Job) -> str | None:
    """Which column of a model a file has otherwise than a job makes it, and how, in words; None if none."""
    models = {} if record is None else record.models
    for name, info in job.models.items():
        if name in models and (difference := _model_difference(name, models[name], info, record, job)):
            other_name = _OPTIONS[made_by_model(info)]
            return (
                f"column {name!r} {difference}. To have both side by side, give this one another name by"
                f" {other_name}"
            )
    return None


def _model_difference(
    name: str, made: Mapping[str, Any], info: Mapping[str, Any], record: FileRecord | None, job: Job
) -> str | None:
    """How a column was made differently, in words: by another model, or of other classes; None if it is the same."""
    difference = describe_other_model(made, info)
    before = {} if record is None else record.scores.get(name, {})
    now = job.scores.get(name, {})
    # Files of before say by which names classes were asked for, and not which they are.
    same = made[CHOSEN] == info.get(CHOSEN) if CHOSEN in made else before.get("recipe") == now.get("recipe")
    if difference or same:
        return difference
    if "classes" not in before and "classes" not in now:
        return "is another of this model's columns"
    return f"is of other classes ({before.get('classes')}); this run has {now.get('classes')}"


def describe_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How two embeddings were made differently, in words; None if they are the same."""
    if FORMERLY in now and identity(before) == identity(now[FORMERLY]):
        return None
    if CHOSEN not in before:  # of a file of before; `_model_difference` compares the names that it has
        now = {key: value for key, value in now.items() if key != CHOSEN}
    keys = [key for key in identity(now) if before.get(key) != now[key]]
    if not keys and identity(before).keys() == identity(now).keys():
        return None
    if keys == [CHOSEN]:
        return f"is of other classes (numbers {before[CHOSEN]}); this run has {now[CHOSEN]}"
    was, has = (", ".join(f"{key} {_short(info.get(key))}" for key in keys) for info in (before, now))
    return f"was made with {was}; this run has {has}"


def describe_other_model(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The same, whichever of a model's classes a column has."""
    infos = ({key: value for key, value in each.items() if key != CHOSEN} for each in (before, now))
    return describe_difference(*infos)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def identity(info: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal for two embeddings to be the same: not the name the model was asked for by, nor a measure."""
    return {key: value for key, value in info.items() if key not in ("source", "least_cosine", FORMERLY)}
