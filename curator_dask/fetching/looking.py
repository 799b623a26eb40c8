"""What came in the place of an image: whether it is one, of which format and size, and smaller if that is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curator_dask.decode.encoding import FORMATS
from curator_dask.decode.orientation import upright_size
from curator_dask.decode.pillow import decode
from curator_dask.decode.smaller import SmallerImages, make_smaller
from curator_dask.decode.sniff import sniff, suffix_for
from curator_dask.errors import ImageError
from curator_dask.fetching.failures import NOT_AN_IMAGE, FailedError
from curator_dask.webdataset.samples import IMAGE_EXTENSIONS

_HEAD = 1024  # bytes in which a page of HTML says that it is one
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<title")


@dataclass(frozen=True)
class Look:
    """What an image file is.

    Attributes
    ----------
    data
        Its bytes, or those of the smaller one.
    suffix
        Of a file of these bytes, by their content.
    width, height
        Pixels of it, upright.
    original_width, original_height
        Those of the file that came.
    digests
        By name, of the bytes that came, in hexadecimal digits.
    left
        Why it is as it came though it is too large, or of another format; None where it is not.
    """

    data: bytes | bytearray
    suffix: str
    width: int
    height: int
    original_width: int
    original_height: int
    digests: Mapping[str, str]
    left: str | None = None


def look_at(
    data: bytes | bytearray, max_pixels: int, smaller: SmallerImages | None, digests: Sequence[str] = ()
) -> Look:
    """Look at what came.

    Parameters
    ----------
    data
        The bytes.
    max_pixels
        Height times width that an image may have.
    smaller
        How it is made smaller; None: it keeps its bytes.
    digests
        Names of those of `hashlib` that are made besides SHA-256.

    Raises
    ------
    FailedError
        It is no image that this package reads, with the reason.
    """
    if not data:
        raise FailedError("empty (0 bytes)", NOT_AN_IMAGE)
    try:
        header = sniff(data, max_pixels)
        suffix = suffix_for(data)
        if suffix not in IMAGE_EXTENSIONS:
            raise ImageError(f"unsupported: {header.kind}, which is no format of images in shards")
        if not header.plain:  # of what is not sure to be whole the pixels are looked at
            decode(data, max_pixels)
    except ImageError as error:
        raise FailedError(_page(data) or str(error), NOT_AN_IMAGE) from None
    width, height = upright_size(data, header)
    made = {name: hashlib.new(name, data, usedforsecurity=False).hexdigest() for name in ("sha256", *digests)}
    if smaller is None:
        return Look(data, suffix, width, height, width, height, made)
    try:
        found = make_smaller(data, smaller, max_pixels)
    except ImageError as error:
        return Look(data, suffix, width, height, width, height, made, str(error))
    if found.data is None:
        return Look(data, suffix, width, height, width, height, made)
    return Look(found.data, FORMATS[found.form].suffix, found.width, found.height, width, height, made)


def _page(data: bytes | bytearray) -> str:
    """That it is a page, in words; empty where it is none."""
    head = bytes(data[:_HEAD]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if any(mark in head for mark in _PAGES):
        return "HTML instead of an image"
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head):
        return "unsupported: SVG, which has no pixels"
    return ""
