"""Tars in every format, with pictures whose one colour is a number."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from colours import colour_of
from PIL import Image

FORMATS = ("v7", "ustar", "gnu", "pax")
_TARFILE = {"v7": tarfile.USTAR_FORMAT, "ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT}


def picture(number: int, form: str = "PNG") -> bytes:
    """A small image of the number's colour, in a format that keeps it to the bit."""
    file = io.BytesIO()
    options = {"lossless": True} if form == "WEBP" else {}
    Image.new("RGB", (20 + number % 7, 18 + number % 5), colour_of(str(number))).save(file, form, **options)
    return file.getvalue()


def tar_bytes(
    members: list[tuple[str, bytes] | tarfile.TarInfo], form: str = "pax", owner: str = "", end: bool = True
) -> bytes:
    """A tar, written header by header.

    Parameters
    ----------
    members
        Names and bytes; a `tarfile.TarInfo` is a member without content (a directory, a link).
    form
        One of `FORMATS`. v7 has no mark of its format, no owner names, and 100 bytes for a name.
    owner
        Name of owner and group.
    end
        Whether the end mark is written.
    """
    written = bytearray()
    for member in members:
        info, data = (
            (member, b"") if isinstance(member, tarfile.TarInfo) else (tarfile.TarInfo(member[0]), member[1])
        )
        info.size, info.uname, info.gname = len(data), owner, owner
        header = bytearray(info.tobuf(_TARFILE.get(form, tarfile.PAX_FORMAT), "utf-8", "surrogateescape"))
        if form == "v7":
            assert len(header) == 512 and not header[345], f"{info.name}: too long for v7"
            header[257:512] = bytes(255)
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
        written += header + data + bytes(-len(data) % 512)
    return bytes(written) + bytes(1024 if end else 0)


def directory(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
