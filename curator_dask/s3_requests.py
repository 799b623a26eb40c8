"""S3 is asked once where s3fs (2026.9) asks two or three times; other stores as fsspec does it."""

from __future__ import annotations

import errno
from typing import Any


def is_s3(fs: Any) -> bool:
    """Whether a file system of fsspec's is s3fs itself."""
    return "s3" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def read_all(fs: Any, path: str) -> bytes:
    """All of a file, without its size being asked for before (`findings/s3fs_asks_twice.sh`)."""
    if is_s3(fs):
        try:
            return bytes(fs.cat_file(path, start=0))
        except OSError as error:
            if error.errno != errno.EINVAL:  # as of a range of what is empty
                raise
    return bytes(fs.cat_file(path))


def read_tail(fs: Any, path: str, size: int) -> bytes | None:
    """The last bytes of a file, all of it where it has fewer; None where the store does not give these alone."""
    if not is_s3(fs):
        return None
    try:
        return bytes(fs.cat_file(path, start=-size))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None


def find_below(fs: Any, folder: str) -> list[str]:
    """Paths of all files below a folder.

    Of a folder that is not there s3fs asks twice more, whether it is a file; with a prefix it does not.
    """
    above, _, last = folder.rstrip("/").rpartition("/")
    found: list[str] = fs.find(above, prefix=f"{last}/") if above and is_s3(fs) else fs.find(folder)
    return found
