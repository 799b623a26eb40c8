"""`save_metadata`: where a frame is written to, and that it can be."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import dask.dataframe as dd

from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.parquet import without_leftovers
from curator_dask.outputs.failed import errors_folder, remove_leftovers_of
from curator_dask.outputs.lock import RunLock
from curator_dask.outputs.parquet import ParquetSink
from curator_dask.outputs.placing import locate
from curator_dask.outputs.writing import Output
from curator_dask.runs.groups import Layout
from curator_dask.runs.parts import Part
from curator_dask.runs.run import run
from curator_dask.runs.sharing import take_part
from curator_dask.runs.step import Step
from curator_dask.runs.summary import SaveSummary
from curator_dask.storage import Options, absolute, is_remote, local_path
from curator_dask.webdataset.parquet import file_of
from curator_dask.words import some_of_these

logger = logging.getLogger("curator_dask")


def save(
    frame: dd.DataFrame,
    earlier_steps: Sequence[Step],
    root: str,
    path: str | None,
    *,
    id_col: str,
    columns: Sequence[str] | None,
    overwrite: bool,
    drop_failed: bool,
    input_options: Options,
    output_options: Options,
    layout: Layout | None = None,
    part: Part | None = None,
) -> SaveSummary:
    """Write a frame's partitions as Parquet; see `ImageTextPairDataset.save_metadata`."""
    if isinstance(columns, str | bool):
        raise ConfigError(
            f"columns={columns!r}: expected a list of names, as columns=['key', 'width']; others by name"
        )
    missing = [name for name in columns or () if name not in frame.columns]
    if missing:
        raise ConfigError(
            f"columns: no such columns {missing}; the metadata has {some_of_these(frame.columns, missing[0])}"
        )
    share, mine = None, frame
    if part is not None:
        mine, share = take_part(frame, part)
    new_folders = missing_folders(path) if path else []
    with _no_empty_folders(path):
        output = _output(root, path, overwrite, drop_failed, input_options, output_options)
        if share is not None and not share.shards:
            summary = SaveSummary(output.folder, part=share.told())
            logger.info("%s", summary)
            remove_empty(new_folders)
            return summary
        with _tidied(output.folder):
            summary, _ = run(
                mine,
                earlier_steps,
                ParquetSink(output, share),
                kept=[name for name in frame.columns if columns is None or name in columns],
                id_col=id_col,
                input_options=input_options,
                layout=layout,
            )
    return summary


@contextlib.contextmanager
def opened(folder: str, options: Options, *beside: str, part: Part | None = None) -> Iterator[RunLock]:
    """Make the folder of an output, and keep other runs out of it, by a lock; remove what dead processes have left.

    Where the block fails, no folder is left that it has made and that is empty.

    Parameters
    ----------
    folder
        Absolute path or URL.
    options
        For fsspec.
    beside
        Local folders that the block makes for what belongs to the output.
    part
        That the block does; others of as many parts may write there.

    Raises
    ------
    OutputError
        It cannot be written to, or another run writes there.
    """
    with _no_empty_folders(folder, *beside):
        if not is_remote(folder):
            check_writable(folder)
        with RunLock(folder, options, part) as lock, without_leftovers(folder, *beside):
            yield lock


@contextlib.contextmanager
def _tidied(folder: str) -> Iterator[None]:
    """Where the block fails, remove what workers were writing that have died meanwhile, as of a signal to all."""
    try:
        yield
    except BaseException:
        remove_leftovers_of(folder)
        raise


@contextlib.contextmanager
def _no_empty_folders(*paths: str | None) -> Iterator[None]:
    """Where the block fails, remove the folders that it has made for an output, if nothing came to be in them."""
    missing = [folder for path in paths if path for folder in missing_folders(path)]
    try:
        yield
    except BaseException:
        remove_empty(missing)
        raise


def missing_folders(path: str) -> list[Path]:
    """The folders that are to be made for a path to be one, itself first; none in a store."""
    if is_remote(path):
        return []
    folder = Path(absolute(path))
    return [each for each in (folder, *folder.parents) if not os.path.exists(each)]  # noqa: PTH110


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of the folders that are there and empty, one after the other."""
    for each in folders:
        with contextlib.suppress(OSError):
            each.rmdir()


def _output(
    root: str,
    path: str | None,
    overwrite: bool,
    drop_failed: bool,
    input_options: Options,
    options: Options,
) -> Output:
    """Where to write to, if it can be.

    Raises
    ------
    ConfigError
        Failed rows are to be dropped, and it is the dataset's own folder, or has nothing beside it.
    OutputError
        It cannot be written to.
    """
    if options is None and (path is None or path.partition("://")[0] == root.partition("://")[0]):
        options = input_options
    if path == "":
        raise ConfigError("path='': expected a directory or URL, or None for the dataset's own")
    own = locate(root, input_options)
    folder = own if path is None else locate(path, options)
    if not is_remote(folder) and os.path.realpath(folder) == os.path.realpath(own):
        folder = own  # by whatever links
    if folder == own and drop_failed:
        raise ConfigError(
            "drop_failed=True would drop rows from the dataset's own files: give save_metadata a path"
        )
    beside = errors_folder(folder)
    if drop_failed and beside is None:
        raise ConfigError(
            f"drop_failed=True writes failed rows to a folder beside {folder}, and there is none beside a bucket: give"
            " save_metadata a folder in it"
        )
    if not is_remote(folder):
        check_writable(folder)
        if drop_failed and beside is not None and not Path(beside).exists():
            check_writable(os.path.dirname(beside))  # noqa: PTH120
    return Output(folder, options, folder == own, overwrite, drop_failed)


def check_writable(folder: str) -> None:
    """Fail before the model is loaded, not after."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a file, and a folder is expected" if Path(folder).is_file() else error.strerror
        raise OutputError(f"{folder}: could not be written: {why}. Give another path") from error
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder}: could not be written: no permission. Give another path")


def check_apart(source: str, target: str) -> None:
    """Raise OutputError where one folder is the other, or in it, by whatever name."""
    if behind_links(source) == behind_links(target):
        raise OutputError(
            f"{target}: is read from, and what does not pass would be lost: give another folder for the output"
        )
    check_not_inside(source, target)


def check_copied_apart(urls: Iterable[str], target: str) -> None:
    """Raise OutputError where a shard that is copied from might be written over meanwhile, by whatever name."""
    files = [*map(file_of, urls)]  # a link may lead to one from elsewhere
    for folder in {os.path.dirname(each) for each in (*files, *map(behind_links, files))}:  # noqa: PTH120
        check_apart(folder, target)


def check_not_inside(source: str, target: str) -> None:
    """Raise OutputError where one folder is in the other, by whatever name."""
    here, there = (f"{behind_links(each).rstrip('/')}/" for each in (source, target))
    if here != there and (there.startswith(here) or here.startswith(there)):
        raise OutputError(
            f"{target}: who reads the outer of this folder and {source} finds the rows of both: give a folder beside it"
        )


def behind_links(folder: str) -> str:
    """Where a path leads, behind all links; a URL as it is."""
    return folder if is_remote(folder) else os.path.realpath(local_path(folder))


def path_beside(folder: str, suffix: str, files: str) -> str:
    """Path of the folder beside another, which is called the same with something behind it.

    Raises
    ------
    ConfigError
        There can be none.
    """
    if is_remote(folder) and "/" not in folder.partition("://")[2]:
        raise ConfigError(
            f"{folder}: there must be a folder beside the {files}, and there is none beside a bucket: give a folder"
            " in it"
        )
    return f"{folder}{suffix}"
