"""Images of an export that do not stay as they were: which members they are, and what became of each.

They are made smaller, or blurred, or lose their metadata on the way.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Self

import pyarrow as pa

from curator_dask.decode.encoding import FORMATS
from curator_dask.decode.orientation import upright_size
from curator_dask.decode.smaller import SmallerImages, make_smaller
from curator_dask.decode.sniff import sniff
from curator_dask.decode.spec import DEFAULT_MAX_PIXELS
from curator_dask.errors import ImageError, ShardError
from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.outputs.blurring import Blurring
from curator_dask.outputs.cropping import CROPPED, CropCount, Cropping
from curator_dask.outputs.editing import BlurredImages, Edits
from curator_dask.outputs.encoded import image_place, with_suffix
from curator_dask.outputs.latents import Latents
from curator_dask.outputs.stripped import Stripping
from curator_dask.rows.reasons import Reason
from curator_dask.rows.remarks import EXAMPLES
from curator_dask.webdataset.samples import IMAGE_EXTENSIONS, key_text
from curator_dask.webdataset.writer import Contents

#: Columns of the rows beside a tar: pixels, upright, and bytes of the images that are in it.
EXPORTED = pa.schema(
    [("exported_width", pa.int32()), ("exported_height", pa.int32()), ("exported_bytes", pa.int64())]
)
#: Column of the manifest: why an image is as it was though it is too large, or of another format.
LEFT = "image_left"


@dataclass(frozen=True)
class Shrinking:
    """Which images are made smaller, and how.

    Attributes
    ----------
    how
        How large they may be, and what their files are.
    image_member
        See `Sample.image`.
    blurring
        What is blurred in them; None: nothing.
    cropping
        To which size they are cropped; None: to none.
    strip
        What metadata is taken out of all images, as `curator_dask.decode.stripping.strip` says it; None: none.
    latents
        What a VAE makes of them; None: nothing.
    """

    how: SmallerImages
    image_member: str | None = None
    blurring: Blurring | None = None
    cropping: Cropping | None = None
    strip: str | None = None
    latents: Latents | None = None

    @property
    def recipe(self) -> dict[str, Any]:
        """What identifies it."""
        said = asdict(replace(self, latents=None))
        del said["latents"]
        if self.latents is not None:
            said["latents"] = self.latents.recipe
        for name in ("cropping", "strip"):  # as exports before have said it
            if said[name] is None:
                del said[name]
        if self.edits is None:
            del said["blurring"], said["how"]["any_size"]
        return said

    @property
    def edits(self) -> Edits | None:
        """What cannot be left undone, so that it is known of all images before a tar is begun; None: nothing."""
        asked = (self.blurring, self.cropping)
        return None if asked == (None, None) else Edits(*asked, self.how, self.image_member, self.latents)

    @property
    def drops_images(self) -> bool:
        """Whether latents take the places of images."""
        return self.latents is not None and not self.latents.images

    def ready(self) -> Shrinking:
        """The same once what models it needs is known; raises where there is no such model."""
        return self if self.latents is None else replace(self, latents=self.latents.ready())

    @property
    def made(self) -> pa.Schema:
        """The columns that are made on the way, beside each tar."""
        return pa.schema([*EXPORTED, *(() if self.cropping is None else CROPPED)])

    @property
    def columns(self) -> list[str]:
        """Those of the rows that it needs, and that which is counted of samples that are left out."""
        return [] if self.edits is None else [*self.edits.columns, ERROR_COLUMN]


class _Image(NamedTuple):
    """What became of an image; its suffixes are those of the member, before and now."""

    width: int | None
    height: int | None
    before: int
    after: int | None
    suffixes: tuple[str, str]
    made: bool = False
    fewer: bool = False
    left: str | None = None
    blurred: int = 0
    further: bool = False
    cropped: bool = False


class ShrunkImages:
    """The images of one new tar.

    Parameters
    ----------
    shrinking
        What is asked for.
    contents
        Of the tar, the members of all samples one after the other: what makes images smaller is put into it.
    keys, ends
        Of each sample: its key, and behind its last member; 0 before them.
    blurred
        Those of them that are made already.

    Raises
    ------
    ShardError
        Such a one would have the name of another member.
    """

    def __init__(
        self,
        shrinking: Shrinking,
        contents: Contents,
        keys: Sequence[str],
        ends: Sequence[int],
        blurred: BlurredImages | None = None,
    ) -> None:
        self._how, self._keys = shrinking.how, keys
        self._labels = {} if blurred is None else blurred.labels
        self._crops = [] if blurred is None else blurred.cropped
        self._found: dict[int, _Image] = {}  # by number of the sample
        self._places: dict[int, int] = {}  # among the members, by number of the sample
        self._stripping = None if shrinking.strip is None else Stripping(shrinking.strip)
        made: dict[int, Callable[[str, bytes], tuple[str, bytes]]] = {}
        self._owners: dict[int, int] = {}  # by place of a further image, the number of the sample
        for sample, (key, (first, stop)) in enumerate(zip(keys, itertools.pairwise(ends), strict=True)):
            mine = contents.names[first:stop]
            place = None if shrinking.drops_images else image_place(key, mine, shrinking.image_member)
            if self._stripping is not None:
                made |= self._others(self._stripping, sample, first, mine, place)
            if place is not None:
                others = {each.lower() for each in mine[:place] + mine[place + 1 :]}
                self._places[sample] = first + place
                if blurred is not None and sample in blurred.found:
                    self._put(sample, others, blurred, contents)
                else:
                    made[first + place] = partial(self._make, sample, others)
            elif shrinking.drops_images and blurred is not None:
                crop, regions = blurred.crops[sample], blurred.found.get(sample)
                boxes, more = (0, False) if regions is None else (regions.boxes, regions.further)
                there = _Image(*crop.size, 0, None, ("", ""))
                self._found[sample] = there._replace(blurred=boxes, further=more, cropped=True)
        contents.made = made

    @classmethod
    def of(cls, shrinking: Shrinking | None, *members: Any) -> Self | None:
        """Those of a tar; None where nothing is asked for."""
        return None if shrinking is None else cls(shrinking, *members)

    def _others(
        self, stripping: Stripping, sample: int, first: int, mine: Sequence[str], image: int | None
    ) -> dict[int, Callable[[str, bytes], tuple[str, bytes]]]:
        """What takes metadata out of the members of a sample besides its image."""
        made: dict[int, Callable[[str, bytes], tuple[str, bytes]]] = {}
        for place, name in enumerate(mine):
            suffix = name.rpartition(".")[2].lower()
            if suffix == "json":
                made[first + place] = partial(stripping.document, first + place)
            elif suffix in IMAGE_EXTENSIONS and place != image:
                made[first + place] = partial(stripping.image, first + place)
                self._owners[first + place] = sample
        return made

    def _put(self, sample: int, others: set[str], blurred: BlurredImages, contents: Contents) -> None:
        """Put an image that is made already in its place."""
        place, key, found = self._places[sample], self._keys[sample], blurred.found[sample]
        name, data = contents.names[place], blurred.data(sample)
        new_name = name
        if self._how.changes_format:
            new_name = _renamed(key, name, FORMATS[found.made.form].suffixes)
        if new_name != name and new_name.lower() in others:
            raise ShardError(
                f"{key_text(key)}: the new image would be {key_text(new_name)}, as another member is: give another"
                " image_format (--image-format)"
            )
        contents.names[place], contents.sources[place] = new_name, -1
        contents.given[place] = data  # type: ignore[assignment]  # it is in a file, and read when it is written
        self._found[sample] = _Image(
            found.made.width,
            found.made.height,
            found.before,
            len(data),
            (name[len(key) + 1 :], new_name[len(key) + 1 :]),
            True,
            found.made.fewer,
            None,
            found.boxes,
            found.further,
            found.made.crop is not None,
        )

    def _make(self, sample: int, others: set[str], name: str, data: bytes) -> tuple[str, bytes]:
        """The name and the bytes that an image gets."""
        key = self._keys[sample]
        width = height = left = None
        new_name, new, made, fewer = name, data, False, False
        try:
            found = make_smaller(data, self._how)
            width, height, fewer = found.width, found.height, found.fewer
            if self._how.changes_format:
                new_name = _renamed(key, name, FORMATS[found.form].suffixes)
            if new_name != name and new_name.lower() in others:
                raise ImageError(f"name: another member is called {key_text(new_name)}")
            if found.data is not None:
                new, made = found.data, True
        except ImageError as error:
            new_name, left, fewer = name, str(error), False
            width, height = _size_of(data)
        if self._stripping is not None and not made:
            place = self._places[sample]
            _, new = self._stripping.image(place, name, data)
            left = self._stripping.left.get(place, ("", left))[1]
        suffixes = name[len(key) + 1 :], new_name[len(key) + 1 :]
        self._found[sample] = _Image(width, height, len(data), len(new), suffixes, made, fewer, left)
        return new_name, new

    def made(self) -> list[int]:
        """Places of those that are not copied."""
        stripped = [] if self._stripping is None else self._stripping.places()
        return [*(self._places[sample] for sample, each in self._found.items() if each.made), *stripped]

    def beside(self, rows: pa.Table, first: int = 0) -> pa.Table:
        """The rows, from that of a sample on, with the columns of `EXPORTED`.

        They are null where there is no image, or its size is not known.
        """
        there = [name for name in rows.column_names if name not in EXPORTED.names]
        rows = rows.select(there)
        if self._stripping is not None:
            rows = self._stripping.rows(rows)
        images = [self._found.get(sample) for sample in range(first, first + len(rows))]
        for column, value in zip(EXPORTED, ("width", "height", "after"), strict=True):
            values = [None if each is None else getattr(each, value) for each in images]
            rows = rows.append_column(column, pa.array(values, column.type))
        return rows

    def left(self) -> pa.Array:
        """Of each sample what `LEFT` says; null of images that are as they should be."""
        images = [self._found.get(sample) for sample in range(len(self._keys))]
        said = [None if each is None else each.left for each in images]
        for place, (name, why) in sorted(({} if self._stripping is None else self._stripping.left).items()):
            if place in self._owners and said[self._owners[place]] is None:
                said[self._owners[place]] = f"{key_text(name)}: {why}"
        return pa.array(said, pa.string())

    def report(self) -> dict[str, Any]:
        """Counts, for `ExportSummary.add_shard`."""
        blurred = [each for each in self._found.values() if each.blurred]
        made = [
            each
            for each in self._found.values()
            if each.made and (each.fewer or not (each.blurred or each.cropped))
        ]
        stripped = {} if self._stripping is None else self._stripping.report()
        left = Counter[str](stripped.pop("left", {}))
        examples: dict[str, list[str]] = stripped.pop("examples", {})
        known = set() if self._stripping is None else {*self._stripping.left}
        for sample, each in sorted(self._found.items()):
            if each.left is not None and self._places[sample] not in known:
                kind = Reason.of(each.left).label
                left[kind] += 1
                if left[kind] <= EXAMPLES:
                    examples.setdefault(kind, []).append(f"{key_text(self._keys[sample])}: {each.left}")
        beside = (each.further and each.cropped for each in self._found.values())
        renamed = Counter(
            each.suffixes for each in self._found.values() if each.suffixes[0] != each.suffixes[1]
        )
        return {
            "smaller": sum(each.fewer for each in made),
            "converted": sum(not each.fewer for each in made),
            "before": sum(each.before for each in made),
            "after": sum(each.after or 0 for each in made),
            "grown": sum((each.after or 0) > each.before for each in made),
            "blurred": len(blurred),
            "regions": sum(each.blurred for each in blurred),
            "further": sum(each.further for each in blurred),
            "crops": {**vars(CropCount.of(self._crops)), "beside": sum(beside)},
            "labels": self._labels,
            "left": dict(left),
            "examples": examples,
            **({"stripped": stripped} if stripped else {}),
            "renamed": sorted([*map(key_text, suffixes), count] for suffixes, count in renamed.items()),
        }


def _renamed(key: str, name: str, suffixes: Sequence[str]) -> str:
    """The name of an image of the format that is asked for; one that speaks of no other stays."""
    said = name.rpartition(".")[2].lower()
    return with_suffix(key, name, suffixes[0]) if said in IMAGE_EXTENSIONS - {*suffixes} else name


def _size_of(data: bytes) -> tuple[int | None, int | None]:
    """Width and height that an image's headers say, upright."""
    try:
        header = sniff(data, DEFAULT_MAX_PIXELS)
    except ImageError:
        return None, None
    return upright_size(data, header)
