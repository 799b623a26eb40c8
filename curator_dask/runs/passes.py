"""One pass over a shard: its images are read once and decoded once, whatever steps want of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import pyarrow as pa

from curator_dask.cache import ENCODERS, LOADERS
from curator_dask.cluster.leaving import leave_if_broken
from curator_dask.cluster.progress import report
from curator_dask.cluster.timing import Stopwatch, spending
from curator_dask.dashboard.topics import WAITING
from curator_dask.decode.loader import Loader
from curator_dask.decode.orientation import EXIF_COLUMN, turned
from curator_dask.decode.spec import LoaderSpec
from curator_dask.frames.columns import embedding_columns, to_array
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.rows.ids import exact_ids
from curator_dask.rows.images import add_status, read_images, remark_corrupt
from curator_dask.rows.reasons import as_stored, reason_for, reasons_in
from curator_dask.rows.remarks import current_remarks
from curator_dask.runs.awaiting import Order
from curator_dask.runs.blaming import blaming
from curator_dask.runs.step import Reading, Rows, SharingStep, Work
from curator_dask.runs.turns import turn
from curator_dask.webdataset.stamps import Watched


class RowStep(ABC):
    """Base of the package's steps that make columns of what the rows have, and open no image: frozen dataclasses."""

    #: A row comes out for each that goes in.
    keeps_rows = True
    #: Why nothing is to be computed: every row gets nulls and this reason.
    given_up: str | None
    #: False where what kills workers is surely not this.
    may_kill: ClassVar[bool] = True

    @property
    @abstractmethod
    def columns(self) -> Mapping[str, pa.DataType]:
        """The columns that it makes, and ``image_error``."""

    @abstractmethod
    def begin(self, rows: Rows) -> AbstractContextManager[Work]:
        """Have what it needs ready for some rows."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """None: a retry of images does not make these again."""
        return {name: None for name in self.columns if name != ERROR_COLUMN}

    @property
    def read_by(self) -> Mapping[str, str]:
        """Nothing is taken over as vectors are: a value may depend on all columns of its row."""
        return {}

    def describe(self) -> dict[str, dict[str, Any]]:
        """Nothing is loaded; of vectors it makes none."""
        return {}

    def give_up(self, reason: str) -> Self:
        """The same, but nothing is loaded: every row gets this reason; itself where it cannot kill a worker."""
        return replace(self, given_up=reason) if self.may_kill else self  # type: ignore[type-var]

    def reading(self, rows: Rows) -> None:
        """No image is wanted."""
        return

    def __call__(self, frame: Any) -> Any:
        """The frame with its columns, its rows in the same order.

        Raises
        ------
        CuratorError
            What the rows hold does not fit: other vectors, other lengths, no text.
        """
        return run_steps((self,), frame)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Pass:
    """Several steps over the rows of a partition, with one reading and one decoding of its images.

    Attributes
    ----------
    steps
        In their order: each sees the columns of those before it.
    """

    steps: tuple[SharingStep, ...]

    @property
    def recipes(self) -> tuple[tuple[Any, ...], ...]:
        """Those of the steps."""
        return tuple(step.recipe for step in self.steps)

    #: The steps of a pass keep all rows: others are not taken into one.
    keeps_rows = True

    def give_up(self, reason: str) -> Pass:
        """The same without the work that kills workers."""
        return Pass(tuple(step.give_up(reason) for step in self.steps))  # type: ignore[misc]

    def __call__(self, frame: Any) -> Any:
        """The frame with the columns of all steps."""
        return run_steps(self.steps, frame)


def run_steps(steps: Sequence[SharingStep], frame: Any) -> Any:
    """The rows of a partition with the columns that steps make, in the same order.

    Raises
    ------
    ShardError
        A shard cannot be read at all, or what a step made is not what it promised.
    ImageError
        An image cannot be used, and a step says that this ends the run.
    """
    try:
        return _made(steps, frame)
    except Exception:
        leave_if_broken(", ".join(step.label for step in steps))  # else all that comes to this worker fails
        raise


def _made(steps: Sequence[SharingStep], frame: Any) -> Any:
    rows = Rows(frame)
    current_remarks()  # made here, so that the threads that read add to them
    readings = [step.reading(rows) for step in steps]
    first = next((reading for reading in readings if reading is not None), None)
    found: dict[int, dict[str, list[str | None]]] = {}
    order = Order.of(steps)
    with ExitStack() as stack:
        if first is not None and len(rows):
            urls = to_array(frame[URL_COLUMN]).to_pylist()
            url = next((url for url in urls if url is not None), None)
            stack.enter_context(turn(url, first.storage_options))
        ENCODERS.reserve(len(steps))
        works = [_begun(stack, step, rows) for step in steps]
        images = _Images(rows, urls) if first is not None and len(rows) else None
        parts = list(zip(readings, steps, works, strict=True))
        for late in (False, True):
            # Those that wait look at the images again, when what they wait for is there.
            if images is not None:
                images.read([part for number, part in enumerate(parts) if (number in order.waiting) == late])
                if late:
                    images.close()
            for number, (_, step, work) in enumerate(parts):
                if (number in order.makers) != late:
                    found[number] = _finished(rows, step, work)
    rows.arrange([name for step in steps for name in step.columns])
    reasons = {name: each for number in range(len(steps)) for name, each in found[number].items()}
    if any(ERROR_COLUMN in step.columns for step in steps):
        if first is None:  # given up, known, or from vectors alone: nobody has counted
            failed = sum(any(row) for row in zip(*reasons.values(), strict=True))
            report(images=len(rows) - failed, failed=failed)
        errors = rows.column(ERROR_COLUMN) if ERROR_COLUMN in rows.names else pa.nulls(len(rows), pa.string())
        made_here = {name for step in steps for name in step.columns}
        merged = pa.array(_merged(reasons, frame, made_here), pa.string()) if reasons else errors
        rows.add({ERROR_COLUMN: merged})
    return rows.finished()


def _finished(rows: Rows, step: SharingStep, work: Work) -> dict[str, list[str | None]]:
    """Why rows lack a value of what a step has made, which the rows get."""
    with spending("forward"), blaming(step):
        made = work.finish()
    # What lacks a value for its vector's sake has that one's reason, as it is.
    looks = bool(step.needs & {"bytes", "pixels"})
    found = {name: add_status(each, rows.frame) if looks else each for name, each in made.reasons.items()}
    rows.add(made.columns, found)
    return found


def _begun(stack: ExitStack, step: SharingStep, rows: Rows) -> Work:
    with blaming(step):
        return stack.enter_context(step.begin(rows))


class _Images:
    """The images of a partition's rows, as steps want them.

    Parameters
    ----------
    rows
        The rows.
    urls
        Of the shard of each.
    """

    def __init__(self, rows: Rows, urls: list[str | None]) -> None:
        self._rows, self._urls = rows, urls
        self._failed: set[int] = set()
        self._said: dict[int, str] = {}
        self._ids: list[Any] = []
        self._counted = False
        self._watched = Watched()

    def read(self, parts: Sequence[tuple[Reading | None, SharingStep, Work]]) -> None:
        """Give every step the images that it wants; those that read alike share it."""
        waiting = [part for part in parts if part[0] is not None]
        while waiting:
            reading = next((part for part in waiting if part[2].wanted is not None), waiting[0])[0]
            assert reading is not None
            alike = [part for part in waiting if _shares(part[0], part[2], reading)]
            waiting = [part for part in waiting if part not in alike]
            images = self._read(reading)
            tasters = [work for _, step, work in alike if "bytes" in step.needs]
            if tasters:
                images = _tasted(images, tasters)
            viewers = [(step, work) for _, step, work in alike if work.wanted is not None]
            for done, newly in _decoded(images, reading, viewers, self._said):
                fresh = newly - self._failed
                self._failed |= fresh
                report(images=0 if self._counted else done, failed=len(fresh))
            self._counted = True

    def close(self) -> None:
        """See that no shard has changed meanwhile, and remark what decoders said of images that could be used."""
        self._watched.check()
        said = {row: words for row, words in self._said.items() if row not in self._failed}
        remark_corrupt(said, self._ids, self._urls)

    def _read(self, reading: Reading) -> Iterator[tuple[int, Any]]:
        self._ids = exact_ids(self._rows.column(reading.id_col))
        images: Iterator[tuple[int, Any]] = read_images(
            self._ids,
            self._urls,
            reading.id_col,
            use_index_files=reading.use_index_files,
            storage_options=reading.storage_options,
            image_member=reading.image_member,
            watched=self._watched,
        )
        if reading.orientation == "exif-column":
            images = turned(images, self._rows.column(EXIF_COLUMN).to_pylist())
        return images


def _shares(own: Reading | None, work: Work, reading: Reading) -> bool:
    """Whether a reading serves a work: who wants bytes alone does not mind how they are decoded."""
    assert own is not None
    if work.wanted is None:
        names = ("decoder", "max_pixels", "gray16", "decode_scale")
        own = replace(own, **{name: getattr(reading, name) for name in names})
    return own == reading


def _decoded(
    images: Iterator[tuple[int, Any]],
    reading: Reading,
    viewers: Sequence[tuple[SharingStep, Work]],
    said: dict[int, str],
) -> Iterator[tuple[int, set[int]]]:
    """Images done and rows that failed, batch after batch; what decoders said of rows goes into `said`."""
    if not viewers:
        for row, image in images:
            yield 1, {row} if isinstance(image, Exception) else set()
        return
    wanted = [work.wanted for _, work in viewers if work.wanted is not None]
    spec = LoaderSpec.here(
        tuple(each.transform for each in wanted),
        [each.options for each in wanted],
    )
    with (
        LOADERS.lease(spec, lambda: Loader(spec)) as loader,
        # Closed at once also where a model fails: its traceback would keep the loader busy.
        closing(loader.load(images)) as batches,
    ):
        watch = Stopwatch()
        watch.turn_to(WAITING)
        for batch in batches:
            watch.turn_to("forward")
            step, work = viewers[batch.which]
            with blaming(step):
                newly = {*work.take(batch), *batch.errors}
            said |= batch.said
            watch.turn_to(None)
            watch.tell()
            # Each image comes once for each of the works.
            yield (0 if batch.which else len(batch.positions) + len(batch.errors)), newly
            watch.turn_to(WAITING)


def _tasted(images: Iterator[tuple[int, Any]], works: Sequence[Work]) -> Iterator[tuple[int, Any]]:
    for row, image in images:
        for work in works:
            work.take_bytes(row, image)
        yield row, image


def _merged(reasons: dict[str, list[str | None]], frame: Any, made: Collection[str]) -> list[str | None]:
    """``image_error`` of each row: what the steps say, and what is there for other values that are null.

    What is said there of the columns that are `made` holds no more.
    """
    if ERROR_COLUMN not in frame.columns:
        return [
            as_stored(dict(zip(reasons, row, strict=True))) for row in zip(*reasons.values(), strict=True)
        ]
    others = [name for name in embedding_columns(frame) if name not in reasons]
    before = to_array(frame[ERROR_COLUMN]).to_pylist()
    lacking = {name: to_array(frame[name]).is_null().to_pylist() for name in others}
    merged = []
    for number, stored in enumerate(before):
        old = reasons_in(stored)
        said = {name: reason_for(name, old) if lacking[name][number] else None for name in others}
        # Of scores that are there: they are no vectors, and named where they alone are lacking.
        said |= {
            each.column: each.text
            for each in old
            if each.column is not None
            and each.column in frame.columns
            and each.column not in (*others, *reasons, *made)
        }
        merged.append(as_stored({**said, **{name: each[number] for name, each in reasons.items()}}))
    return merged
