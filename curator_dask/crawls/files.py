"""The files of a crawl: where they are, and in which order they count."""

from __future__ import annotations

import gzip
import os

from curator_dask.errors import ConfigError, DatasetError
from curator_dask.storage import Options, is_remote, join, looked_for, read_bytes
from curator_dask.webdataset.listings import files_of
from curator_dask.words import counted

#: Files of records; ``.warc.wet.gz`` has no links.
SUFFIXES = (".warc.wat.gz", ".warc.wat", ".warc.gz", ".warc", ".wat.gz", ".wat")
#: Lists of files, a line each, as Common Crawl's ``wat.paths.gz``.
LISTS = (".paths.gz", ".paths", ".txt", ".txt.gz")


def find_files(
    path: str | os.PathLike[str], prefix: str | None, options: Options, first: int | None = None
) -> list[str]:
    """Paths or URLs of the files of a crawl, in the order of a list, or else by name.

    Parameters
    ----------
    path
        A file of records, a folder or glob of such, or a list of paths.
    prefix
        What stands before each path of a list that is no whole one; None: the folder of the list.
    options
        For fsspec.
    first
        Take no more than so many; None: all.

    Raises
    ------
    ConfigError
        There is a prefix, and no list.
    DatasetError
        There are none, or the list cannot be read.
    """
    text = os.fspath(path)
    if text.lower().endswith(LISTS):
        found = _of_list(text, prefix, options)
    elif prefix is not None:
        raise ConfigError(
            f"prefix={prefix!r} (--prefix): stands before the paths of a list, and {text} is none: expected a name"
            f" that ends with {', '.join(LISTS)}"
        )
    else:
        found = _of_place(text, options)
    found = list(dict.fromkeys(found))
    return found if first is None else found[:first]


def _of_list(path: str, prefix: str | None, options: Options) -> list[str]:
    try:
        content = read_bytes(path, options)
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except (OSError, EOFError, ValueError) as error:
        raise DatasetError(f"{path}{looked_for(path)}: the list of files cannot be read: {error}") from error
    names = [line for line in lines if line and not line.startswith("#")]
    wrong = [name for name in names if not name.lower().endswith(SUFFIXES)]
    if wrong or not names:
        raise DatasetError(
            f"{path}: expected a path of a WAT or WARC file a line ({', '.join(SUFFIXES)}), found"
            f" {repr(wrong[0]) if wrong else 'no line'}"
        )
    folder = path.rpartition("/")[0] if prefix is None else prefix
    return [name if _is_whole(name) or not folder else join(folder, name) for name in names]


def _is_whole(name: str) -> bool:
    return is_remote(name) or os.path.isabs(name)  # noqa: PTH117


def _of_place(path: str, options: Options) -> list[str]:
    files = files_of(path, options)
    if any(sign in path for sign in "*?["):
        found = [each for each in files.glob(path) if not files.is_folder(each)]
    elif path.lower().endswith(SUFFIXES) and not files.is_folder(path):
        if not files.exists(path):
            raise DatasetError(f"{path}{looked_for(path)}: there is no such file")
        return [files.full(path)]
    else:
        found = [*files.walk(files.full(path))]
    taken = sorted(files.full(each) for each in found if each.lower().endswith(SUFFIXES))
    if not taken:
        said = f"found {counted(len(found), 'file')}, such as {min(found)}" if found else "found no file"
        raise DatasetError(
            f"{path}{looked_for(path)}: expected WAT or WARC files ({', '.join(SUFFIXES)}), or a list of them"
            f" ({', '.join(LISTS)}); {said}"
        )
    return taken
