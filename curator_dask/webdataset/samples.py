"""What of a tar is a sample: members whose names share a key, by webdataset's rule."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

from curator_dask.webdataset.headers import Member

IMAGE_EXTENSIONS = frozenset(
    """jpg jpeg jpe jfif png apng webp gif bmp dib tif tiff avif heic heif jxl jp2 j2k jpx
    ppm pgm pbm pnm tga ico""".split()  # noqa: SIM905
)
"""Extensions, in lower case, by which a component is taken for an image."""


class Sample(NamedTuple):
    """The members of one key.

    Attributes
    ----------
    key
        Name up to the first dot of its last part, folders included, a leading ``./`` not.
    members
        In tar order.
    """

    key: str
    members: tuple[Member, ...]

    @property
    def stem(self) -> str:
        """What the names of its members begin with."""
        return self.key

    def component(self, *suffixes: str) -> Member | None:
        """The member whose name is the key, a dot and one of the suffixes (``"txt"``, ``"1.jpg"``).

        Case does not matter. Earlier suffixes win over later ones. None if there is no such member.
        """
        for suffix in suffixes:
            for member in self.members:
                if suffix_of(member) == suffix.lower():
                    return member
        return None

    def text(self, extension: str, *preferred: str) -> Member | None:
        """The text of this extension: ``key.txt``, else the first whose last extension it is (``key.caption.txt``).

        Of the latter the suffixes `preferred` win. None if there is none.
        """
        found = self.component(extension, *preferred)
        others = (member for member in self.members if suffix_of(member).rpartition(".")[2] == extension)
        return next(others, None) if found is None else found

    def image(self, suffix: str | None = None) -> Member | None:
        """The image: ``key.ext`` if there is one, else the first member whose last extension is an image's.

        `IMAGE_EXTENSIONS` says which these are. With a `suffix` it is the member of this suffix. None if there
        is no image.
        """
        if suffix is not None:
            return self.component(suffix)
        images = [m for m in self.members if suffix_of(m).rpartition(".")[2] in IMAGE_EXTENSIONS]
        plain = (member for member in images if "." not in suffix_of(member))
        return next(plain, images[0] if images else None)


def split_name(name: str) -> tuple[str, str] | None:
    """Key and suffix of a member's name, by webdataset's rule; None for what is not part of a sample.

    ``"a.b/c.1.jpg"`` has the key ``"a.b/c"`` and the suffix ``"1.jpg"``. Hidden files, files in ``__MACOSX``
    and names without a dot are not part of a sample.
    """
    name = name.removeprefix("./")
    last = name.rfind("/") + 1
    dot = name.find(".", last)
    if dot <= last or name.startswith("__MACOSX/") or "/__MACOSX/" in name:
        return None
    return name[:dot], name[dot + 1 :]


def key_text(key: str) -> str:
    """The key as text that every column can hold: bytes that are not UTF-8 in hexadecimal, after a backslash."""
    if key.isascii():  # most are
        return key
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def group_members(members: Iterable[Member]) -> tuple[list[Sample], tuple[str, ...]]:
    """Samples of the members, and the names of those whose name came before."""
    groups: dict[str, dict[str, Member]] = {}
    repeated = []
    for member in members:
        parts = split_name(member.name)
        if parts is None:
            continue
        group = groups.setdefault(parts[0], {})
        if group.setdefault(parts[1], member) is not member:
            repeated.append(member.name)
    return [Sample(key, tuple(group.values())) for key, group in groups.items()], tuple(repeated)


def suffix_of(member: Member) -> str:
    """What follows the key and its dot in a member's name, in lower case."""
    return _suffix(member.name)


@functools.lru_cache(maxsize=256)
def _suffix(name: str) -> str:
    """The same of a name; remembered, for each component that is looked for asks all members of its sample."""
    parts = split_name(name)
    return parts[1].lower() if parts else ""
