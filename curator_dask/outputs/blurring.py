"""Images of an export with regions that are blurred: which regions, and what becomes of samples that cannot be blurred.

These must not go out as they are, so it is known of all samples of a new tar before the first of them is written: the
new images lie in a temporary file until it is their turn.
"""

from __future__ import annotations

import itertools
import mmap
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa

from curator_dask.decode.blurring import checked_boxes
from curator_dask.decode.smaller import Smaller, SmallerImages, make_smaller
from curator_dask.errors import ConfigError, ImageError, OutputError
from curator_dask.frames.columns import is_boxes, values_of
from curator_dask.outputs.encoded import image_place
from curator_dask.rows.reasons import Reason
from curator_dask.rows.remarks import EXAMPLES
from curator_dask.webdataset.ranges import Ranges, is_read_ahead
from curator_dask.webdataset.samples import IMAGE_EXTENSIONS
from curator_dask.webdataset.staging import current_worker
from curator_dask.webdataset.writer import Contents

#: Begins the reason of each of these.
NOT_BLURRED = "not blurred"
#: Kind of the reasons that are of a row's boxes, whatever its image is: others may be there later.
BOXES = "boxes"

_THREADS = min(4, os.cpu_count() or 1)
Boxes = list[tuple[float, float, float, float]]
_BOXES, _LABELS = "_boxes", "_labels"


@dataclass(frozen=True)
class Blurring:
    """What is blurred.

    Attributes
    ----------
    column
        Of the boxes.
    only
        Labels of those that are blurred; empty: all are.
    strength
        See `curator_dask.decode.blurring.blur`.
    keep_unseen
        Rows whose boxes are null, of which nobody has looked at the image, are exported as they are.

    Raises
    ------
    ConfigError
        They cannot be.
    """

    column: str
    only: tuple[str, ...] = ()
    strength: float = 1.0
    keep_unseen: bool = False

    def __post_init__(self) -> None:
        strength = self.strength
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0.5 <= strength <= 100:
            raise ConfigError(
                f"blur_strength={strength!r} (--blur-strength): expected a number from 0.5 to 100; 1 is img2dataset's"
            )
        if not isinstance(self.column, str) or not self.column:
            raise ConfigError(f"blur={self.column!r} (--blur): expected the column of the boxes")
        if not all(isinstance(each, str) and each for each in self.only):
            raise ConfigError(f"blur_only={self.only!r} (--blur-only): expected labels")
        if self.only and not self.column.endswith(_BOXES):
            raise ConfigError(
                f"blur_only (--blur-only): the labels of a column NAME{_BOXES} are in NAME{_LABELS}; {self.column!r} is"
                " called otherwise"
            )

    @property
    def labels(self) -> str | None:
        """The column of the boxes' labels, where they matter."""
        return self.column.removesuffix(_BOXES) + _LABELS if self.only else None

    @property
    def columns(self) -> list[str]:
        """All that is needed of the rows."""
        return [self.column, *([self.labels] if self.labels else [])]

    @property
    def condition(self) -> str | None:
        """Which rows can be exported, as behind SQL's WHERE; None: all."""
        quoted = self.column.replace('"', '""')
        return None if self.keep_unseen else f'"{quoted}" IS NOT NULL'

    def check(self, rows: pa.Table) -> None:
        """Raise ConfigError where the columns are none of boxes and labels."""
        kind = rows.schema.field(self.column).type
        if not is_boxes(kind):
            raise ConfigError(
                f"blur={self.column!r} (--blur): expected lists of boxes, each a list of four numbers, found {kind}"
            )
        if self.labels is not None:
            kind = rows.schema.field(self.labels).type
            if not (pa.types.is_string(values_of(kind)) or pa.types.is_large_string(values_of(kind))):
                raise ConfigError(
                    f"blur_only (--blur-only): expected lists of labels in {self.labels!r}, found {kind}"
                )

    def boxes(self, row: Mapping[str, Any], labelled: Counter[str]) -> Boxes:
        """What is blurred of the image of a row; its labels are counted, where they matter.

        Raises
        ------
        ImageError
            Its boxes are none, or it is not known whether they are to be blurred.
        """
        boxes = row.get(self.column)
        if boxes is None:
            if self.keep_unseen:
                return []
            raise ImageError("boxes: null, nobody has looked at the image")
        if self.labels is not None:
            labels = row.get(self.labels)
            if labels is None or len(labels) != len(boxes):
                raise ImageError(f"boxes: {len(boxes)}, and {'no' if labels is None else len(labels)} labels")
            if None in labels:
                raise ImageError("boxes: one has no label, so nobody knows whether it is to be blurred")
            labelled.update(labels)
            boxes = [box for box, label in zip(boxes, labels, strict=True) if label in self.only]
        return checked_boxes(boxes)


class Blurred(NamedTuple):
    """An image that was blurred.

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
    labels
        How many boxes have each label, where labels matter; of other labels than those that are blurred the most
        frequent ones.
    """

    kept: np.ndarray
    found: dict[int, Blurred]
    file: memoryview
    left_out: dict[int, str]
    lost: dict[str, Any]
    labels: dict[str, int]

    def data(self, sample: int) -> memoryview:
        """The new file of a sample's image."""
        return self.file[self.found[sample].start : self.found[sample].stop]


@contextmanager
def blurred_images(
    blurring: Blurring,
    how: SmallerImages,
    image_member: str | None,
    contents: Contents,
    ends: Sequence[int],
    keys: Sequence[str],
    called: Sequence[str],
    rows: pa.Table,
    ranges: Ranges,
) -> Iterator[BlurredImages]:
    """Blur the images of samples, of a new tar's, of which something is to be blurred; they are there in the block.

    Parameters
    ----------
    blurring, how, image_member
        What is blurred, what the files are, and which of several images of a sample.
    contents, ends
        The members of all samples, and behind the last of each; 0 before them.
    keys, called, rows
        Of the samples: the keys that they get, those that they had, which examples say, and their rows.
    ranges
        Reads members.
    """
    todo: list[tuple[int, int, Boxes]] = []
    left_out: dict[int, str] = {}
    further: set[int] = set()
    labelled: Counter[str] = Counter()
    for sample, (row, (first, stop)) in enumerate(
        zip(rows.select(blurring.columns).to_pylist(), itertools.pairwise(ends), strict=True)
    ):
        mine = contents.names[first:stop]
        place = image_place(keys[sample], mine, image_member)
        try:
            boxes = blurring.boxes(row, labelled)
        except ImageError as error:
            left_out[sample] = str(error)
            continue
        if not boxes:
            continue
        if place is None:
            left_out[sample] = "missing: the sample has no such image"
            continue
        todo.append((sample, first + place, boxes))
        others = mine[:place] + mine[place + 1 :]
        if any(each.rpartition(".")[2].lower() in IMAGE_EXTENSIONS for each in others):
            further.add(sample)
    found: dict[int, Blurred] = {}
    with _scratch() as file:
        end = 0
        for (sample, _, boxes), size, made in _made(todo, blurring, how, contents, ranges):
            if isinstance(made, str):
                left_out[sample] = made
                continue
            data = made.data or b""
            with _told():
                file.write(data)
            found[sample] = Blurred(
                made._replace(data=None), size, end, end + len(data), len(boxes), sample in further
            )
            end += len(data)
        with _told():
            file.flush()
        kept = np.array([each for each in range(len(keys)) if each not in left_out], np.int64)
        numbers = {each: number for number, each in enumerate(kept.tolist())}
        found = {numbers[sample]: each for sample, each in found.items()}
        lost = _lost(left_out, contents.names, ends, keys, called)
        # A map stays as long as something looks at it, whatever becomes of the file.
        mapped = memoryview(mmap.mmap(file.fileno(), end, access=mmap.ACCESS_READ) if end else b"")
        yield BlurredImages(kept, found, mapped, left_out, lost, _told_of(labelled, blurring.only))


def _told_of(labelled: Counter[str], only: Sequence[str]) -> dict[str, int]:
    """Counts of the labels that are blurred, and of the most frequent others."""
    others = [each for each in labelled.most_common(len(only) + EXAMPLES) if each[0] not in only]
    return {each: labelled[each] for each in only} | dict(others[:EXAMPLES])


def _place() -> str:
    """Where new images lie: a worker's scratch folder, which Dask also clears after one that was killed."""
    return getattr(current_worker(), "local_directory", None) or tempfile.gettempdir()


def _scratch() -> IO[bytes]:
    with _told():
        return tempfile.TemporaryFile(prefix="curator_dask-blurred-", dir=_place())


@contextmanager
def _told() -> Iterator[None]:
    """Say what cannot be written, and where."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{_place()}: blurred images cannot be put there until their tar is written: {error.strerror or error}."
            " TMPDIR, or a worker's --local-directory, chooses another place"
        ) from error


def _lost(
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


def kind_of_lost(reason: str) -> str:
    """As what a sample is counted that cannot be blurred."""
    return f"{NOT_BLURRED} ({Reason.of(reason).label})"


def _made(
    todo: Sequence[tuple[int, int, Boxes]],
    blurring: Blurring,
    how: SmallerImages,
    contents: Contents,
    ranges: Ranges,
) -> Iterator[tuple[tuple[int, int, Boxes], int, Smaller | str]]:
    """What becomes of images, in their order, with the bytes that each had: the reason where it cannot be blurred."""

    def make(data: bytes, boxes: Boxes) -> Smaller | str:
        try:
            return make_smaller(data, how, boxes=boxes, strength=blurring.strength)
        except ImageError as error:
            return str(error)

    places = [place for _, place, _ in todo if contents.sources[place] >= 0]
    extents = [contents.extent(place) for place in places]
    urls = list(dict.fromkeys(each.url for each in extents))
    ahead = [each for each in extents if is_read_ahead(each.url)]
    begun: deque[tuple[Any, int, Future[Smaller | str]]] = deque()
    with ranges.reading(urls, ahead) as reading, ThreadPoolExecutor(_THREADS, "curator-blurring") as pool:
        for each in todo:
            _, place, boxes = each
            has = contents.sources[place] >= 0
            data = reading.read(contents.extent(place)) if has else bytes(contents.given[place])
            begun.append((each, len(data), pool.submit(make, data, boxes)))
            if len(begun) > 2 * _THREADS:
                first, size, made = begun.popleft()
                yield first, size, made.result()
        for first, size, made in begun:
            yield first, size, made.result()
