"""What an image file says of whose it is, where it comes from, and what may be done with it, without decoding it."""

from __future__ import annotations

import datetime
import json
import re
import struct
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from curator_dask.decode.c2pa import Asserted, asserted
from curator_dask.decode.embedded import Embedded, decoded, embedded, iptc_records
from curator_dask.decode.exif import EXIF_BLOCK, GPS_BLOCK, Exif, ExifError
from curator_dask.decode.sniff import Encoded
from curator_dask.decode.xmp import Xmp, XmpError

#: The statistics of this module, with their Arrow types; `curator_dask.frames.names.METADATA_DEFINITIONS` defines them.
METADATA = {
    "has_gps": pa.bool_(),
    "taken": pa.string(),
    "camera": pa.string(),
    "software": pa.string(),
    "creator": pa.string(),
    "copyright": pa.string(),
    "license_url": pa.string(),
    "digital_source": pa.string(),
    "ai_claimed": pa.bool_(),
    "has_c2pa": pa.bool_(),
    "data_mining": pa.string(),
    "data_mining_prohibited": pa.bool_(),
}

#: IPTC's digital source types (cv.iptc.org/newscodes/digitalsourcetype) of what a trained model has made, or changed.
AI_SOURCES = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia")

_LONGEST = 1000  # characters of a text

_DC, _XMP = "http://purl.org/dc/elements/1.1/", "http://ns.adobe.com/xap/1.0/"
_XMP_RIGHTS, _CC = "http://ns.adobe.com/xap/1.0/rights/", "http://creativecommons.org/ns#"
_EXIF, _PHOTOSHOP = "http://ns.adobe.com/exif/1.0/", "http://ns.adobe.com/photoshop/1.0/"
_IPTC_EXT, _PLUS = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/", "http://ns.useplus.org/ldf/xmp/1.0/"
_TIFF = "http://ns.adobe.com/tiff/1.0/"
# Of the W3C group's TDM Reservation Protocol; of China's GB 45438-2025.
_TDM = ("http://www.w3.org/ns/tdmrep/", "http://www.w3.org/ns/tdmrep#", "http://www.w3.org/ns/tdmrep")
_AIGC = ("http://www.tc260.org.cn/ns/AIGC/1.0/", "AIGC")

_MAKE, _MODEL, _SOFTWARE, _ARTIST, _COPYRIGHT, _XP_AUTHOR = 0x010F, 0x0110, 0x0131, 0x013B, 0x8298, 0x9C9D
_DESCRIPTION = 0x010E
_ORIGINAL, _USER_COMMENT = 0x9003, 0x9286
_COORDINATES = (0x0002, 0x0004, 0x0014, 0x0016)  # latitude, longitude, and those of what is seen
_BYLINE, _IPTC_COPYRIGHT, _CODING = (2, 80), (2, 116), (1, 90)

_EXIF_TIME = re.compile(r"(\d{4}):(\d\d):(\d\d)[ T](\d\d):(\d\d):(\d\d)")
_ISO_TIME = re.compile(r"\d{4}(?:-\d\d(?:-\d\d(?:T\d\d:\d\d(?::\d\d)?)?)?)?")

# What programs that make images write into PNG, and into EXIF's comment: keyword, and what its text has.
_STEPS = (re.compile(r"\bSteps: \d"), re.compile(r"\b(?:Sampler|CFG scale|Seed): "))
_JOB = re.compile(r"\bJob ID: [0-9a-f]{8}-[0-9a-f]{4}-")
_KEYWORDS = {
    "invokeai_metadata": "InvokeAI",
    "invokeai_graph": "InvokeAI",
    "sd-metadata": "InvokeAI",
    "fooocus_scheme": "Fooocus",
}
_IN_EXIF = re.compile(r"\s*(?:prompt|workflow)\s*:\s*\{", re.IGNORECASE)  # of ComfyUI, in WebP and JPEG
_GENERATORS = ("NovelAI", "InvokeAI", "ComfyUI", "Draw Things", "Midjourney", "Stable Diffusion")


def read_metadata(data: Encoded) -> dict[str, Any]:
    """The statistics of one encoded image.

    Parameters
    ----------
    data
        The file.

    Returns
    -------
    dict
        By the names of `METADATA`. Texts are None where nothing is said, and of 1,000 characters at the most. Booleans
        are True where it is said, False where nothing says so, and None where that is not known, as something is there
        that cannot be read.
    """
    found = embedded(data)
    xmp, whole = _packets(found)
    exif = _Exif(found.exif)
    iptc = _iptc(found.iptc)
    said = Asserted((), None) if found.c2pa is None else asserted(found.c2pa)
    whole &= exif.whole and not found.unread
    generator = _generator(found, exif, xmp)
    source = _source(xmp, said)
    mining = _mining(xmp) or said.forbidden
    forbidden = mining is not None and _is_forbidden(mining)
    is_ai = source in AI_SOURCES or generator is not None or _is_labelled(found, xmp)
    made_by = [
        exif.text(_MAKE) or xmp.first((_TIFF, "Make")),
        exif.text(_MODEL) or xmp.first((_TIFF, "Model")),
    ]
    software = (
        exif.text(_SOFTWARE) or xmp.first((_XMP, "CreatorTool")) or found.texts.get("Software") or generator
    )
    notices = {
        "taken": exif.taken or _iso(xmp.first((_EXIF, "DateTimeOriginal"), (_PHOTOSHOP, "DateCreated"))),
        "camera": _camera(*("" if _IN_EXIF.match(part or "") else part or "" for part in made_by)),
        "software": software,
        "creator": "; ".join(xmp.values.get((_DC, "creator"), ()))
        or iptc.get(_BYLINE)
        or exif.text(_ARTIST)
        or exif.text(_XP_AUTHOR)
        or found.texts.get("Author"),
        "copyright": xmp.first((_DC, "rights"))
        or iptc.get(_IPTC_COPYRIGHT)
        or exif.text(_COPYRIGHT)
        or found.texts.get("Copyright"),
        "license_url": xmp.first((_CC, "license"), (_XMP_RIGHTS, "WebStatement"), (_PLUS, "LicensorURL")),
        "digital_source": source,
        "data_mining": mining,
    }
    return {
        **{name: _tidy(text) for name, text in notices.items()},
        "has_gps": _known(exif.has_gps or _has_gps(xmp), whole),
        "ai_claimed": _known(is_ai, whole),
        "has_c2pa": _known(found.c2pa is not None, not found.cut),
        "data_mining_prohibited": _known(forbidden, whole),
    }


def _known(said: bool, whole: bool) -> bool | None:
    return True if said else False if whole else None


def _tidy(text: str | None) -> str | None:
    """Without what a Parquet file of text cannot hold, or a reader would not show."""
    if text is None:
        return None
    shown = " ".join(text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8").split())
    return shown[:_LONGEST] or None


class _Both(Xmp):
    """What several packets say together."""

    def __init__(self) -> None:
        self.values, self.names = {}, set()


def _packets(found: Embedded) -> tuple[Xmp, bool]:
    """What XMP says, and whether all of it was read."""
    both, whole = _Both(), True
    for packet in found.xmp:
        try:
            one = Xmp(packet)
        except XmpError:
            whole = False
            continue
        for name, texts in one.values.items():
            both.values.setdefault(name, []).extend(texts)
        both.names |= one.names
    return both, whole


class _Exif:
    """What EXIF says; `whole` is False where there is a block that cannot be read."""

    def __init__(self, block: bytes | memoryview | None) -> None:
        self.whole, self.has_gps, self._comment = True, False, ""
        self.taken: str | None = None
        self._texts: dict[int, str] = {}
        if block is None:
            return
        try:
            self._read(Exif(block))
        except (ExifError, struct.error):
            self.whole = False

    def _read(self, exif: Exif) -> None:
        first = exif.find(exif.first, *_NAMED, _XP_AUTHOR, EXIF_BLOCK, GPS_BLOCK)
        self._texts = {tag: decoded(exif.value(first[tag])).strip("\0 ") for tag in _NAMED if tag in first}
        if _XP_AUTHOR in first:
            self._texts[_XP_AUTHOR] = (
                exif.value(first[_XP_AUTHOR]).decode("utf-16-le", "replace").strip("\0 ")
            )
        if (at := exif.pointer(first.get(GPS_BLOCK))) is not None:
            self.has_gps = any(map(exif.is_number, exif.find(at, *_COORDINATES).values()))
        if (at := exif.pointer(first.get(EXIF_BLOCK))) is not None:
            inner = exif.find(at, _ORIGINAL, _USER_COMMENT)
            if _ORIGINAL in inner:
                self.taken = _time(decoded(exif.value(inner[_ORIGINAL])))
            if _USER_COMMENT in inner:  # the first 8 bytes name its coding: ASCII, or UTF-16
                self._comment = decoded(exif.value(inner[_USER_COMMENT])[8:].replace(b"\0", b""))

    def text(self, tag: int) -> str | None:
        return self._texts.get(tag) or None

    def texts(self) -> list[str]:
        """All in which a program may have put by what an image was made."""
        return [self._comment, *self._texts.values()]


_NAMED = (_MAKE, _MODEL, _SOFTWARE, _ARTIST, _COPYRIGHT, _DESCRIPTION)


def _time(text: str) -> str | None:
    found = _EXIF_TIME.match(text)
    try:
        return (
            datetime.datetime.strptime(":".join(found.groups()), "%Y:%m:%d:%H:%M:%S").isoformat()
            if found
            else None
        )
    except ValueError:  # of zeros, say
        return None


def _has_gps(xmp: Xmp) -> bool:
    return any(space == _EXIF and name in ("GPSLatitude", "GPSLongitude") for space, name in xmp.names)


def _camera(make: str, model: str) -> str | None:
    """Maker and model, the maker once."""
    if make.split() and model.lower().startswith(make.split()[0].lower()):
        return model
    return f"{make} {model}".strip() or None


def _iptc(block: bytes | None) -> dict[tuple[int, int], str]:
    found: dict[tuple[int, int], list[bytes]] = {}
    for record, number, start, stop in iptc_records(block or b""):
        found.setdefault((record, number), []).append((block or b"")[start:stop])
    wide = b"".join(found.get(_CODING, [])) == b"\x1b%G"
    said = {}
    for name in (_BYLINE, _IPTC_COPYRIGHT):
        texts = [each.decode("utf-8", "replace") if wide else decoded(each) for each in found.get(name, [])]
        said[name] = "; ".join(text.strip("\0 ") for text in texts)
    return said


def _iso(text: str | None) -> str | None:
    found = _ISO_TIME.match(text or "")
    return found[0] if found else None


def _source(xmp: Xmp, said: Asserted) -> str | None:
    """IPTC's word for how the image came about: of several the one that says that a model has made it."""
    own = (
        text
        for name in ("DigitalSourceType", "DigitalSourcetype")
        for text in xmp.values.get((_IPTC_EXT, name), ())
    )
    words = [text.rstrip("/").rpartition("/")[2] for text in own] + [*said.sources]
    return next((each for each in words if each in AI_SOURCES), words[0] if words else None)


def _mining(xmp: Xmp) -> str | None:
    """What is said of text and data mining: PLUS's word, or the reservation of TDMRep."""
    text = xmp.first((_PLUS, "DataMining"))
    if text is not None:
        return text.rstrip("/").rpartition("/")[2]
    number = xmp.first(*((space, "reservation") for space in _TDM))
    return None if number is None else f"tdm-reservation={number}"


def _is_forbidden(mining: str) -> bool:
    """Whether a reservation is one: all of PLUS's that begin so are, also those with exceptions."""
    return mining.upper().startswith("DMI-PROHIBITED") or mining in (
        "tdm-reservation=1",
        "notAllowed",
        "constrained",
    )


def _is_labelled(found: Embedded, xmp: Xmp) -> bool:
    """Whether a label of GB 45438-2025 says that an image is (1), may be (2) or is suspected to be (3) generated."""
    for text in (xmp.first(_AIGC), found.texts.get("AIGC")):
        try:
            label = json.loads(text or "null")
        except (ValueError, RecursionError):
            continue
        label = label.get("AIGC", label) if isinstance(label, dict) else {}
        if isinstance(label, dict) and str(label.get("Label")) in ("1", "2", "3"):
            return True
    return False


def _generator(found: Embedded, exif: _Exif, xmp: Xmp) -> str | None:
    """The program whose notes lie in the file, by which it has generated the image; None: there are none."""
    texts = found.texts
    tools = (
        texts.get("Software"),
        texts.get("Source"),
        exif.text(_SOFTWARE),
        xmp.first((_XMP, "CreatorTool")),
    )
    if named := _first_named(tools):
        return named
    if keyword := next((each for each in _KEYWORDS if each in texts), None):
        return _KEYWORDS[keyword]
    if '"class_type"' in texts.get("prompt", "") or '"nodes"' in texts.get("workflow", ""):
        return "ComfyUI"
    notes = [texts.get("parameters", ""), *exif.texts()]
    if any(_IN_EXIF.match(text) for text in notes):
        return "ComfyUI"
    if any('"sui_image_params"' in text for text in notes):
        return "SwarmUI"
    if any(all(part.search(text) for part in _STEPS) for text in [*notes, texts.get("comment", "")]):
        return "Stable Diffusion web UI"
    described = (
        texts.get("Description", ""),
        exif.text(_DESCRIPTION) or "",
        xmp.first((_DC, "description")) or "",
    )
    return "Midjourney" if any(map(_JOB.search, described)) else None


def _first_named(tools: Iterable[str | None]) -> str | None:
    return next(
        (name for tool in tools for name in _GENERATORS if (tool or "").lower().startswith(name.lower())),
        None,
    )
