"""Images of an export that are made anew ahead: blurred, or cropped; and what becomes of samples that cannot be.

These must not go out as they are, so it is known of all samples of a new tar before the first of them is written: the
new images lie in a temporary file until it is their turn.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from curator_dask.decode.cropping import Crop
from curator_dask.decode.smaller import Smaller, SmallerImages, make_smaller
from curator_dask.errors import ImageError
from curator_dask.outputs.blurring import BOXES, Blurring, Boxes
from curator_dask.outputs.cropping import Cropping
from curator_dask.outputs.encoded import image_place
from curator_dask.outputs.latents import LATENT, NOT_ENCODED, Latents, making
from curator_dask.outputs.scratch import scratch
from curator_dask.outputs.taken_down import REMOVED
from curator_dask.rows.reasons import Reason
from curator_dask.rows.remarks import EXAMPLES
from curator_dask.webdataset.ranges import Ranges, is_read_ahead
from curator_dask.webdataset.samples import IMAGE_EXTENSIONS
from curator_dask.webdataset.writer import Contents

#: Begins the reason of each sample that is left out, as it is counted.
NOT_BLURRED, NOT_CROPPED = "not blurred", "not cropped"

_THREADS = min(4, os.cpu_count() or 1)


class Edit(NamedTuple):
    """What is done to an image.

    Attributes
    ----------
    boxes
        What is blurred.
    size
        Width and height that it gets; None: its own.
    """

    boxes: Boxes
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Edits:
    """What is done to images.

    Attributes
    ----------
    blurring, cropping
        What is blurred, and to which size they are cropped; None: nothing, to none.
    how, image_member
        What the files are, and which of several images of a sample.
    latents
        What a VAE makes of them; None: nothing.
    """

    blurring: Blurring | None
    cropping: Cropping | None
    how: SmallerImages
    image_member: str | None
    latents: Latents | None = None

    @property
    def columns(self) -> list[str]:
        """All that is needed of the rows."""
        columns = [] if self.blurring is None else self.blurring.columns
        return [*columns, *([] if self.cropping is None else self.cropping.columns)]

    def of(self, row: Mapping[str, Any], labelled: Counter[str]) -> Edit:
        """What is done to the image of a row; raises ImageError where it is not known."""
        boxes = [] if self.blurring is None else self.blurring.boxes(row, labelled)
        try:
            size = None if self.cropping is None else self.cropping.size(row)
            if self.latents is not None and size and (why := self.latents.check_size(*size)):
                raise ImageError(why)
            return Edit(boxes, size)
        except ImageError as error:
            raise ImageError(self.reason(error)) from None

    def make(self, data: bytes, edit: Edit) -> Smaller | str:
        """Do it; the reason where it cannot be done."""
        strength = 1.0 if self.blurring is None else self.blurring.strength
        more = {} if self.latents is None else {"pixels": True, "write": self.latents.images}
        try:
            return make_smaller(data, self.how, boxes=edit.boxes, strength=strength, size=edit.size, **more)
        except ImageError as error:
            return self.reason(error)

    def reason(self, why: Exception | str) -> str:
        """Why it cannot be done to an image, saying what."""
        if self.cropping is None:
            return str(why)
        kind, _, more = str(why).partition(":")
        return f"{NOT_CROPPED} ({kind}){':' * bool(more)}{more}"

    @property
    def only(self) -> Sequence[str]:
        """Labels of the boxes that are blurred."""
        return () if self.blurring is None else self.blurring.only


class Blurred(NamedTuple):
    """An image that was blurred, or cropped.

    Attributes
    ----------
    made
        What it is now, but for its bytes.
    before
        Bytes that it had.
    start, stop
        Where it lies in the temporary file.
    boxes
        How many regions were blurred.
    further
        The sample has other images, which were not.
    """

    made: Smaller
    before: int
    start: int
    stop: int
    boxes: int
    further: bool


@dataclass
class BlurredImages:
    """The blurred images of a new tar.

    Attributes
    ----------
    kept
        int64: numbers of the samples that can be exported.
    found
        By number among these, the images that were blurred.
    file
        With these.
    left_out
        Why others cannot, by number among all.
    lost
        Counts of these, for `ExportSummary.add_shard`.
    crops
        How images were cropped, by number among those kept; of those too that had the size already.
    labels
        How many boxes have each label, where labels matter; of other labels than those that are blurred the most
        frequent ones.
    latents
        Where in the file the latents of each sample lie, by number among those kept; None: there are none.
    """

    kept: np.ndarray
    found: dict[int, Blurred]
    file: memoryview
    left_out: dict[int, str]
    lost: dict[str, Any]
    crops: dict[int, Crop]
    labels: dict[str, int]
    latents: dict[int, tuple[int, int]] | None = None

    @property
    def members(self) -> dict[str, list[memoryview]]:
        """By suffix, of each sample that is kept, the files that it gets."""
        if self.latents is None:
            return {}
        places = (self.latents[number] for number in range(len(self.kept)))
        return {LATENT: [self.file[start:stop] for start, stop in places]}

    @property
    def cropped(self) -> list[Crop | None]:
        """Of each sample that is kept, how it was cropped."""
        return [self.crops.get(number) for number in range(len(self.kept))]

    def data(self, sample: int) -> memoryview:
        """The new file of a sample's image."""
        return self.file[self.found[sample].start : self.found[sample].stop]


@contextmanager
def blurred_images(
    edits: Edits,
    contents: Contents,
    ends: Sequence[int],
    keys: Sequence[str],
    called: Sequence[str],
    rows: pa.Table,
    ranges: Ranges,
) -> Iterator[BlurredImages]:
    """Blur or crop the images of samples, of a new tar's, to which it is to be done; they are there in the block.

    Parameters
    ----------
    edits
        What is done.
    contents, ends
        The members of all samples, and behind the last of each; 0 before them.
    keys, called, rows
        Of the samples: the keys that they get, those that they had, which examples say, and their rows.
    ranges
        Reads members.
    """
    todo: list[tuple[int, int, Edit]] = []
    crops: dict[int, Crop] = {}
    left_out: dict[int, str] = {}
    further: set[int] = set()
    labelled: Counter[str] = Counter()
    for sample, (row, (first, stop)) in enumerate(
        zip(rows.select(edits.columns).to_pylist(), itertools.pairwise(ends), strict=True)
    ):
        mine = contents.names[first:stop]
        place = image_place(keys[sample], mine, edits.image_member)
        try:
            edit = edits.of(row, labelled)
        except ImageError as error:
            left_out[sample] = str(error)
            continue
        if not edit.boxes and edit.size is None:
            continue
        if place is None:
            left_out[sample] = edits.reason("missing: the sample has no such image")
            continue
        todo.append((sample, first + place, edit))
        others = mine[:place] + mine[place + 1 :]
        if any(each.rpartition(".")[2].lower() in IMAGE_EXTENSIONS for each in others):
            further.add(sample)
    found: dict[int, Blurred] = {}
    with scratch() as file:
        with making(edits.latents, file.put, len(todo)) as latents:
            for (sample, _, edit), size, made in _made(todo, edits, contents, ranges):
                if isinstance(made, str):
                    left_out[sample] = made
                    continue
                if made.crop is not None:
                    crops[sample] = made.crop
                if latents is not None and made.pixels is not None:
                    latents.add(sample, called[sample], made.pixels)
                if (data := made.data) is None and not (latents and edit.boxes):
                    continue  # it has the size, and is copied
                alone = made._replace(data=None, pixels=None)
                found[sample] = Blurred(
                    alone, size, *file.put(data or b""), len(edit.boxes), sample in further
                )
        file.flush()
        if latents is not None:
            left_out |= latents.failed
        kept = np.array([each for each in range(len(keys)) if each not in left_out], np.int64)
        numbers = {each: number for number, each in enumerate(kept.tolist())}
        found = {numbers[sample]: each for sample, each in found.items() if sample in numbers}
        crops = {numbers[sample]: each for sample, each in crops.items() if sample in numbers}
        lies: dict[int, tuple[int, int]] | None = None if edits.latents is None else {}
        if lies is not None and latents is not None:
            lies |= {numbers[sample]: each for sample, each in latents.found.items()}
        lost = lost_of(left_out, contents.names, ends, keys, called)
        told = _told_of(labelled, edits.only)
        yield BlurredImages(kept, found, file.mapped(), left_out, lost, crops, told, lies)


def _told_of(labelled: Counter[str], only: Sequence[str]) -> dict[str, int]:
    """Counts of the labels that are blurred, and of the most frequent others."""
    others = [each for each in labelled.most_common(len(only) + EXAMPLES) if each[0] not in only]
    return {each: labelled[each] for each in only} | dict(others[:EXAMPLES])


def lost_of(
    left_out: Mapping[int, str],
    names: Sequence[str],
    ends: Sequence[int],
    keys: Sequence[str],
    called: Sequence[str],
) -> dict[str, Any]:
    """How many samples are left out, with which fields, and why."""
    fields, reasons = Counter[str](), Counter[str]()
    examples: dict[str, list[str]] = {}
    for sample, reason in sorted(left_out.items()):
        start = len(keys[sample]) + 1
        fields.update(name[start:] for name in names[ends[sample] : ends[sample + 1]])
        kind = kind_of_lost(reason)
        reasons[kind] += 1
        if reasons[kind] <= EXAMPLES:
            examples.setdefault(kind, []).append(f"{called[sample]}: {reason}")
    said = {"fields": dict(fields), "reasons": dict(reasons), "examples": examples}
    return {"samples": len(left_out), **said}


def is_of_row(reason: str) -> bool:
    """Whether a sample is left out for what its row says, whatever its image is: that may be mended later."""
    return Reason.of(reason).kind == BOXES or reason.startswith(f"{NOT_CROPPED} (size)")


def kind_of_lost(reason: str) -> str:
    """As what a sample is counted that cannot be blurred, cropped, or encoded, or was taken down."""
    if reason == REMOVED:
        return reason
    if reason.startswith((NOT_CROPPED, NOT_ENCODED)):
        return reason.partition(":")[0]
    return f"{NOT_BLURRED} ({Reason.of(reason).label})"


def _made(
    todo: Sequence[tuple[int, int, Edit]],
    edits: Edits,
    contents: Contents,
    ranges: Ranges,
) -> Iterator[tuple[tuple[int, int, Edit], int, Smaller | str]]:
    """What becomes of images, in their order, with the bytes that each had: the reason where it cannot be done."""
    places = [place for _, place, _ in todo if contents.sources[place] >= 0]
    extents = [contents.extent(place) for place in places]
    urls = list(dict.fromkeys(each.url for each in extents))
    ahead = [each for each in extents if is_read_ahead(each.url)]
    begun: deque[tuple[Any, int, Future[Smaller | str]]] = deque()
    # While a VAE is at work, the images of its next batch are made.
    most = max(2 * _THREADS, 0 if edits.latents is None else 2 * edits.latents.batch_size)
    with ranges.reading(urls, ahead) as reading, ThreadPoolExecutor(_THREADS, "curator-blurring") as pool:
        for each in todo:
            _, place, edit = each
            has = contents.sources[place] >= 0
            data = reading.read(contents.extent(place)) if has else bytes(contents.given[place])
            begun.append((each, len(data), pool.submit(edits.make, data, edit)))
            if len(begun) > most:
                first, size, made = begun.popleft()
                yield first, size, made.result()
        for first, size, made in begun:
            yield first, size, made.result()
