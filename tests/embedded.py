"""Metadata of image files, written by hand as its specifications have it, and put where each format has it."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
SPACES = {
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpRights": "http://ns.adobe.com/xap/1.0/rights/",
    "cc": "http://creativecommons.org/ns#",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "plus": "http://ns.useplus.org/ldf/xmp/1.0/",
    "tdm": "http://www.w3.org/ns/tdmrep/",
    "TC260": "http://www.tc260.org.cn/ns/AIGC/1.0/",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
}
AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def xmp(inner: str = "", attributes: str = "") -> bytes:
    """A packet with elements and attributes of one description."""
    spaces = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in SPACES.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f'<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description rdf:about="" {spaces} {attributes}>{inner}</rdf:Description>'
        f'</rdf:RDF></x:xmpmeta>{" " * 50}<?xpacket end="w"?>'
    ).encode()


def exif(orientation: int | None = None, place: bool = True, **texts: str) -> bytes:
    """A block as Pillow writes it: texts by Pillow's names of their tags."""
    from PIL import ExifTags

    block = Image.Exif()
    if orientation is not None:
        block[ExifTags.Base.Orientation] = orientation
    for name, text in texts.items():
        if name == "DateTimeOriginal":
            block.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = text
        else:
            block[ExifTags.Base[name]] = text.encode()
    if place:
        where = block.get_ifd(ExifTags.IFD.GPSInfo)
        where[1], where[2], where[3], where[4] = "N", (48.0, 8.0, 30.5), "E", (11.0, 34.0, 0.0)
    return block.tobytes()


def iptc(**texts: str) -> bytes:
    """IPTC's records: by-line, copyright and city, in Photoshop's resources."""
    numbers = {"byline": 80, "copyright": 116, "city": 90}
    parts = [b"\x1c\x01\x5a\0\x03\x1b%G"]
    for name, text in texts.items():
        data = text.encode()
        parts.append(struct.pack(">BBBH", 0x1C, 2, numbers[name], len(data)) + data)
    records = b"".join(parts)
    return (
        b"Photoshop 3.0\x008BIM\x04\x04\0\0"
        + struct.pack(">I", len(records))
        + records
        + b"\0" * (len(records) % 2)
    )


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def superbox(label: str, *boxes: bytes) -> bytes:
    return box(b"jumb", box(b"jumd", bytes(16) + b"\x03" + label.encode() + b"\0") + b"".join(boxes))


def manifest(source: str = "", mining: str = "", size: int = 0) -> bytes:
    """A manifest store with an action in CBOR, and an entry on training."""
    assertions = [superbox("c2pa.thumbnail.claim.jpeg", box(b"bidb", bytes(size)))]
    if source:
        text = f"http://cv.iptc.org/newscodes/digitalsourcetype/{source}".encode()
        # Behind the text a key of length 4 begins, whose first byte is a letter: d.
        cbor = (
            b"\xa1gactions\x81\xa2q"
            + b"digitalSourceType"
            + bytes([0x78, len(text)])
            + text
            + b"dwhenf202012"
        )
        assertions.append(superbox("c2pa.actions", box(b"cbor", cbor)))
    if mining:
        cbor = b"\xa1x\x1bcawg.ai_generative_training\xa1cuse" + bytes([0x60 + len(mining)]) + mining.encode()
        assertions.append(superbox("cawg.training-mining", box(b"cbor", cbor)))
    return superbox("c2pa", superbox("urn:uuid:1", superbox("c2pa.assertions", *assertions)))


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def put(
    data: bytes, exif: bytes = b"", xmp: bytes = b"", iptc: bytes = b"", store: bytes = b"", **texts: str
) -> bytes:
    """A file with these blocks: a JPEG, a PNG (also with texts) or a WebP of the simple form."""
    exif = exif.removeprefix(b"Exif\0\0")
    if data[:2] == b"\xff\xd8":
        parts = [segment(0xE1, b"Exif\0\0" + exif)] if exif else []
        parts += [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)] if xmp else []
        parts += [segment(0xED, iptc)] if iptc else []
        pieces = [store[at : at + 60_000] for at in range(0, len(store), 60_000)]
        for number, piece in enumerate(pieces, 1):  # each begins with the head of the whole box
            again = store[:8] if number > 1 else b""
            parts.append(segment(0xEB, b"JP\0\1" + struct.pack(">I", number) + again + piece))
        parts += [segment(0xFE, text.encode()) for text in texts.values()]
        return data[:2] + b"".join(parts) + data[2:]
    if data[:4] == b"\x89PNG":
        parts = [chunk(b"eXIf", exif)] if exif else []
        parts += [chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)] if xmp else []
        parts += [chunk(b"caBX", store)] if store else []
        parts += [chunk(b"tEXt", f"{name}\0{text}".encode()) for name, text in texts.items()]
        return data[:33] + b"".join(parts) + data[33:]
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    flags = 0x08 * bool(exif) | 0x04 * bool(xmp)
    chunks = [
        (
            b"VP8X",
            bytes([flags, 0, 0, 0]) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3],
        )
    ]
    chunks += [(data[12:16], data[20:])]
    chunks += [(name, block) for name, block in ((b"EXIF", exif), (b"XMP ", xmp), (b"C2PA", store)) if block]
    body = b"".join(
        name + struct.pack("<I", len(block)) + block + b"\0" * (len(block) % 2) for name, block in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
