"""`AspectBuckets`: the size to which an image is cropped for training, of few sizes of about as many pixels each.

After NovelAI (https://github.com/NovelAI/novelai-aspect-ratio-bucketing): images of one bucket make a batch without
padding, and little of each is cut off. SDXL, FLUX and their trainers (kohya-ss' sd-scripts) do the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.cropping import LONGEST, size_in
from curator_dask.errors import ConfigError, DatasetError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import read_record
from curator_dask.frames.record import FIELDS, FileRecord
from curator_dask.image.statistics.names import chosen_names
from curator_dask.runs.lineage import trace
from curator_dask.runs.passes import RowStep
from curator_dask.runs.step import Known, Made, Rows, Work
from curator_dask.storage import Options

#: Pixels by which sides grow: SDXL's, sd-scripts' default.
STEP = 64
_MOST = 2000  # buckets


def bucket_sizes(
    resolution: int,
    step: int = STEP,
    min_side: int | None = None,
    max_side: int | None = None,
    max_ratio: float | None = None,
) -> list[tuple[int, int]]:
    """The sizes for a resolution: of each width the largest height within ``resolution ** 2`` pixels, and turned.

    Parameters
    ----------
    resolution
        Side of the square; a multiple of `step`.
    step
        Sides are multiples of it.
    min_side, max_side
        Of sides; None: half of the resolution, and twice.
    max_ratio
        Of the longer side to the shorter; None: any.

    Returns
    -------
    list
        Widths and heights, ascending.

    Raises
    ------
    ConfigError
        There are none such.
    """
    low = -(-(resolution // 2) // step) * step if min_side is None else min_side
    high = min(2 * resolution, LONGEST // step * step) if max_side is None else max_side
    given = {"resolution": resolution, "step": step, "min_side": low, "max_side": high}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LONGEST or value % step:
            raise ConfigError(
                f"{name}={value!r}: expected a whole number of pixels up to {LONGEST}, a multiple of the step {step!r}"
            )
    if not low <= resolution <= high:
        raise ConfigError(
            f"resolution={resolution}, min_side={low}, max_side={high}: expected it between these two"
        )
    if max_ratio is not None and (isinstance(max_ratio, bool) or not max_ratio >= 1):
        raise ConfigError(f"max_ratio={max_ratio!r}: expected a number of at least 1")
    found = {(resolution, resolution)}
    for side in range(low, high + 1, step):
        other = min(high, resolution**2 // side // step * step)
        if other >= low:
            found |= {(side, other), (other, side)}
    if max_ratio is not None:
        found = {size for size in found if max(size) <= max_ratio * min(size)}
    return sorted(found)


def measured_sides(statistics: Sequence[str] | None, prefix: str) -> dict[str, str]:
    """Arguments of `AspectBuckets`: the columns of width and height that statistics measure beside it.

    Parameters
    ----------
    statistics, prefix
        As of `ImageStatistics`; without any none are measured.

    Raises
    ------
    ConfigError
        There is no such statistic.
    """
    names = chosen_names(statistics) if statistics else []
    return {name: prefix + name for name in ("width", "height") if name in names}


class AspectBuckets:
    """Adds the size to which each image is to be cropped, as ``832x1216``: a column of text.

    Of the sizes for a resolution an image gets the one whose ratio of sides is nearest to its own, by the logarithm:
    an image and the same one turned get sizes that are turned. Nothing is read but the columns of width and height.

    Parameters
    ----------
    resolution
        Side of the square whose pixels are the most that a size has (see `bucket_sizes`). Of several, an image gets the
        largest whose size it has in width and height. Or sizes, as ``["1024x1024", "832x1216"]``.
    step, min_side, max_side, max_ratio
        See `bucket_sizes`. `min_side` and `max_side` are for one resolution.
    upscale
        Whether an image that is smaller than its size, of each resolution, gets that of the smallest one all the same,
        and is enlarged. If not, it gets null.
    width, height
        Columns of the pixels of the upright image, as `ImageStatistics` measures them.
    column
        The new one.

    Raises
    ------
    ConfigError
        There are no such sizes.
    """

    def __init__(
        self,
        resolution: int | str | Sequence[int | str] = 1024,
        *,
        step: int = STEP,
        min_side: int | None = None,
        max_side: int | None = None,
        max_ratio: float | None = None,
        upscale: bool = True,
        width: str = "width",
        height: str = "height",
        column: str = "bucket",
    ) -> None:
        given = [resolution] if isinstance(resolution, int | str) else list(resolution)
        if isinstance(step, bool) or not isinstance(step, int) or step < 1:
            raise ConfigError(f"step={step!r} (--bucket-step): expected a whole number of at least 1")
        named = [each for each in given if isinstance(each, str)]
        sides = [each for each in given if not isinstance(each, str)]
        if not given or (named and len(named) < len(given)):
            raise ConfigError(
                f"resolution={resolution!r} (--bucket): expected resolutions, as 1024, or sizes, as 832x1216"
            )
        limits = (min_side, max_side)
        if limits != (None, None) and (named or len(given) > 1):
            raise ConfigError("min_side and max_side (--bucket-min, --bucket-max) are for one resolution")
        if named and (step, max_ratio) != (STEP, None):
            raise ConfigError("step and max_ratio are for resolutions: sizes are given as they are to be")
        self.sizes: tuple[tuple[tuple[int, int], ...], ...]
        if named:
            self.sizes = (tuple(sorted({size_in(each) for each in named})),)
        else:
            every = sorted({*sides}, reverse=True)
            self.sizes = tuple(tuple(bucket_sizes(each, step, *limits, max_ratio)) for each in every)
        if (number := sum(map(len, self.sizes))) > _MOST:
            raise ConfigError(
                f"step={step} (--bucket-step): {number:,} sizes, more than {_MOST:,}: give a larger one"
            )
        if len({width, height, column, URL_COLUMN}) < 4 or not column:
            raise ConfigError(f"column={column!r}, width={width!r}, height={height!r}: expected three names")
        self.upscale, self.width, self.height, self.column = upscale, width, height, column

    @property
    def pred_column(self) -> str:
        """The new column."""
        return self.column

    def __call__(self, dataset: ImageTextPairDataset) -> ImageTextPairDataset:
        """The dataset with the column as its last; nothing is computed yet.

        Raises
        ------
        DatasetError
            There are no columns of width and height.
        ConfigError
            There is a column of this name already.
        """
        there = list(dataset.metadata.columns)
        if missing := [name for name in (self.width, self.height) if name not in there]:
            raise DatasetError(self._lacks(missing, there))
        if self.column in there and not self._made(dataset):
            raise ConfigError(f"column={self.column!r}: the dataset has one of this name: give another")
        return dataset.apply(self.step())

    def _made(self, dataset: ImageTextPairDataset) -> bool:
        """Whether the column is an earlier run's, in the dataset's own files, which make it anew."""
        inputs = trace(dataset.metadata).inputs or ()
        path = next((part.shard.parquet for part in inputs if part.shard.parquet is not None), None)
        record = None if path is None else read_record(path, dataset.storage_options)
        head = "" if record is None else record.scores.get(self.column, {}).get("head", "")
        return str(head).startswith(PutInBuckets.label)

    def of_files(self, records: Mapping[str, FileRecord | None], options: Options = None) -> PutInBuckets:
        """The step for files that are there."""
        return self.step()

    def step(self) -> PutInBuckets:
        """What is done to the rows of a shard."""
        return PutInBuckets(self.sizes, self.upscale, self.width, self.height, self.column)

    def _lacks(self, missing: Sequence[str], there: Sequence[str]) -> str:
        return _lacks(self.column, missing, there)

    def __repr__(self) -> str:
        return f"AspectBuckets({self.step().told}, column={self.column!r})"


def _lacks(column: str, missing: Sequence[str], there: Sequence[str]) -> str:
    return (
        f"{column!r}: there are no columns {list(missing)} of pixels, but {list(there)}: measure them first"
        " (ImageStatistics(['width', 'height']), --statistics width,height), or name others (width, height,"
        " --bucket-of)"
    )


@dataclass(frozen=True)
class PutInBuckets(RowStep):
    """The step of `AspectBuckets`.

    Attributes
    ----------
    sizes
        Of each resolution, the largest first: widths and heights.
    upscale, width, height, column
        See `AspectBuckets`.
    """

    sizes: tuple[tuple[tuple[int, int], ...], ...]
    upscale: bool
    width: str
    height: str
    column: str
    given_up: str | None = None

    label = "aspect buckets"
    may_kill = False
    needs = frozenset({"rows"})

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The sizes; where a width is null, no image is at fault for it here."""
        return {self.column: pa.string()}

    @property
    def told(self) -> str:
        """In words."""
        every = [size for sizes in self.sizes for size in sizes]
        largest = max(every, key=lambda size: size[0] * size[1])
        return f"{len(every)} sizes up to {_name(largest)}{'' if self.upscale else ', none enlarged'}"

    @property
    def recipe(self) -> tuple[Any, ...]:
        """Which sizes, and of what."""
        return ("aspect buckets", 1, self.sizes, self.upscale, self.width, self.height, self.column)

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """What the record of a file says of the column."""
        said = {"head": f"{self.label}, {self.told}", FIELDS: [self.width, self.height]}
        return {self.column: {**said, "recipe": fingerprint({"recipe": self.recipe})}}

    @contextmanager
    def begin(self, rows: Rows) -> Iterator[Work]:
        """Say the sizes of some rows."""
        if not len(rows):
            yield Known(Made.of_no_rows(self.columns))
            return
        yield _Putting(self, rows)

    def names_of(self, widths: np.ndarray, heights: np.ndarray) -> pa.Array:
        """The sizes of images of so many pixels, float (n,); NaN or none gives null."""
        known = np.isfinite(widths) & np.isfinite(heights) & (widths > 0) & (heights > 0)
        names: np.ndarray = np.full(len(widths), None, object)
        open_ = known.copy()
        for number, sizes in enumerate(self.sizes):
            wide, high = np.array(sizes).T
            areas = wide * high
            order = np.lexsort((-wide, -areas))  # of ratios that are as near, that of the largest area
            wide, high = wide[order], high[order]
            ratios = np.log(wide / high)
            some = np.flatnonzero(open_)
            for start in range(0, len(some), _ROWS):
                mine = some[start : start + _ROWS]
                apart = np.abs(np.log(widths[mine] / heights[mine])[:, None] - ratios)
                nearest = np.argmin(np.round(apart, 12), axis=1)
                fits = (widths[mine] >= wide[nearest]) & (heights[mine] >= high[nearest])
                if self.upscale and number == len(self.sizes) - 1:
                    fits[:] = True
                names[mine[fits]] = [f"{wide[at]}x{high[at]}" for at in nearest[fits]]
                open_[mine[fits]] = False
        return pa.array(names, pa.string())


_ROWS = 1 << 14  # that are compared with all sizes at once


def _name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


class _Putting(Work):
    """The sizes of the rows of one partition."""

    def __init__(self, step: PutInBuckets, rows: Rows) -> None:
        self._step, self._rows = step, rows

    def finish(self) -> Made:
        """The column, null where width or height is."""
        step = self._step
        if missing := [name for name in (step.width, step.height) if name not in self._rows.names]:
            raise ConfigError(_lacks(step.column, missing, self._rows.names))
        pixels = []
        for name in (step.width, step.height):
            values = self._rows.column(name)
            if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
                raise ConfigError(f"{name!r} (--bucket-of): expected numbers of pixels, found {values.type}")
            pixels.append(values.cast(pa.float64()).to_numpy(zero_copy_only=False))
        return Made({step.column: step.names_of(*pixels)})
