"""What is done to the rows of a shard: the contract of a step, and a base for steps that only add columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from curator_dask import backend
from curator_dask.decode.batches import Batch
from curator_dask.decode.spec import ImageOptions
from curator_dask.errors import ConfigError, ShardError
from curator_dask.fingerprint import code_digest
from curator_dask.frames.columns import with_columns
from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.runs.blaming import blaming, whose
from curator_dask.runs.rows import Rows as Rows  # from here, too
from curator_dask.storage import Options

#: What a step may need of a row: its other columns, the bytes of its image, the decoded pixels, a vector.
NEEDS = frozenset({"rows", "bytes", "pixels", "vectors"})


@runtime_checkable
class GivesUp(Protocol):
    """What is done to a partition, and can be given up: a step, or a pass of several."""

    def give_up(self, reason: str) -> Any:
        """The same without the work that kills workers: rows get this reason in ``image_error``."""


@runtime_checkable
class Step(Protocol):
    """What is done to the rows of a shard: it adds columns, and may leave rows out.

    A step travels to the workers: it holds settings, never a model. Called with a frame (pandas or cuDF) it gives
    the frame with its columns. `curator_dask.testing.StepTests` holds the contract.
    """

    @property
    def label(self) -> str:
        """What messages call it."""

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """The columns that it makes, with their Arrow types, in their order."""

    @property
    def needs(self) -> frozenset[str]:
        """Of `NEEDS`, what it needs of a row."""

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What identifies it: all that decides its result, but models, which `describe` identifies."""

    @property
    def keeps_rows(self) -> bool:
        """Whether a row comes out for each that goes in, in the same order."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """By column, JSON-able arguments that make it again, for retries; None for what cannot be made so."""

    @property
    def read_by(self) -> Mapping[str, str]:
        """By column of vectors, or of what is seen in images, what decides it besides the model and the shard.

        What an earlier run has made by the same is taken over (`Rows.known`, `Rows.known_columns`). So are scores, by
        their ``recipe``; other columns never are.
        """

    def describe(self) -> Mapping[str, Mapping[str, Any]]:
        """Load what it needs, on a worker, where it stays; by column that a model makes, what makes it (JSON-able).

        For a column of vectors with their length as ``dim``. Two workers must say the same.
        """

    def give_up(self, reason: str) -> Step:
        """The same without the work that kills workers: rows get this reason in ``image_error``."""

    def __call__(self, frame: Any) -> Any:
        """The frame with the step's columns."""


@runtime_checkable
class SharingStep(Step, Protocol):
    """A step that takes images as they are read: several of these share one reading and one decoding of a shard."""

    def reading(self, rows: Rows) -> Reading | None:
        """How the images of these rows are read and decoded; None if none are wanted."""

    def begin(self, rows: Rows) -> AbstractContextManager[Work]:
        """Begin with the rows of a partition; what is leased for the work is given back at the end of the block."""


@runtime_checkable
class ScoringStep(Protocol):
    """A step that says in the record of a file what made its columns: scores of vectors, or columns of a table."""

    @property
    def scores(self) -> Mapping[str, Mapping[str, Any]]:
        """By column, JSON-able: names of ``head`` and ``vectors``, ``recipe``, whether they were ``checked`` to fit.

        Of a table's, ``on`` stands for ``vectors``, and ``table`` says where it is.
        """


@dataclass(frozen=True)
class Reading:
    """How images are read and decoded; steps that agree in it share that work.

    Attributes
    ----------
    id_col
        Column of the keys.
    decoder, max_pixels, use_index_files, image_member, gray16, orientation, decode_scale
        See `curator_dask.decode.spec.ImageOptions`.
    storage_options
        For fsspec, where shards are URLs.
    """

    id_col: str
    decoder: str
    max_pixels: int
    use_index_files: bool = True
    storage_options: Options = None
    image_member: str | None = None
    gray16: str = "scale"
    orientation: str = "stored"
    decode_scale: str = "exact"

    @classmethod
    def of(cls, id_col: str, options: ImageOptions, storage_options: Options = None) -> Reading:
        """As options say."""
        names = [each.name for each in fields(cls) if each.name not in ("id_col", "storage_options")]
        how = {name: getattr(options, name) for name in names}
        return cls(id_col, storage_options=storage_options, **how)


@dataclass(frozen=True)
class Wanted:
    """Which pixels a step wants.

    Attributes
    ----------
    transform
        A `TransformSpec`, a function of a PIL image, or None: the images whole.
    options
        Of their batches.
    """

    transform: Any
    options: ImageOptions


@dataclass
class Made:
    """What a step has made of the rows of a partition.

    Attributes
    ----------
    columns
        Arrow arrays, one value a row, by name.
    reasons
        For the columns that could fail, by name: why each row has no value; None where it has one.
    """

    columns: dict[str, pa.Array] = field(default_factory=dict)
    reasons: dict[str, list[str | None]] = field(default_factory=dict)

    @classmethod
    def of_no_rows(cls, columns: Mapping[str, pa.DataType]) -> Made:
        """Columns without a value, of their types: also where a dataset asks what these are."""
        return cls({name: pa.array([], kind) for name, kind in columns.items()})


class Work(ABC):
    """What a step does to the rows of one partition."""

    #: The pixels that are wanted; None: none.
    wanted: Wanted | None = None

    def take_bytes(self, row: int, image: Any) -> None:  # noqa: B027, most steps want none
        """Look at the encoded image of a row, or at the error in its place; called in the thread that reads."""

    def take(self, batch: Batch) -> Collection[int]:
        """Work on some images: `Batch.positions` and `Batch.errors` are by row.

        Returns
        -------
        The rows that have failed by this step's doing, besides those of `Batch.errors`.
        """
        return ()

    @abstractmethod
    def finish(self) -> Made:
        """What came of it, when all images have been taken."""


@dataclass
class Known(Work):
    """No work: what an earlier run has made.

    Attributes
    ----------
    made
        That.
    """

    made: Made

    def finish(self) -> Made:
        """It."""
        return self.made


class ColumnStep(ABC):
    """Base of steps that compute columns from the other columns of a row: scores, labels, flags.

    A subclass gives `columns` and `compute`, and if it computes from vectors says so by `needs`. It is pickled to the
    workers, so it holds settings (strings, numbers). Apply it with `ImageTextPairDataset.apply`.
    """

    #: Part of the fingerprint. The code of the class is too, but not what that calls: change this when that changes.
    version: str = ""
    needs: frozenset[str] = frozenset({"rows"})
    keeps_rows: bool = True

    @property
    def label(self) -> str:
        """The class's name."""
        return type(self).__qualname__

    @property
    @abstractmethod
    def columns(self) -> Mapping[str, pa.DataType]:
        """The columns that it makes, with their Arrow types."""

    @abstractmethod
    def compute(self, rows: Rows) -> Mapping[str, Any]:
        """The columns' values by name: Arrow or NumPy arrays or lists, one value a row (`Rows.column`)."""

    @property
    def read_by(self) -> Mapping[str, str]:
        """Nothing is taken over: a value may depend on all columns of its row."""
        return {}

    def reading(self, rows: Rows) -> None:
        """No image is wanted."""
        return

    @property
    def recipe(self) -> tuple[Any, ...]:
        """Class, version and a digest of code and settings."""
        kinds = [kind for kind in type(self).__mro__ if kind not in ColumnStep.__mro__]
        return ("column", type(self).__qualname__, self.version, code_digest(vars(self), kinds))

    @property
    def arguments(self) -> Mapping[str, Any]:
        """None can be made again from what JSON holds."""
        return dict.fromkeys(self.columns)

    def describe(self) -> Mapping[str, Mapping[str, Any]]:
        """Nothing is loaded before the first rows come."""
        return {}

    def give_up(self, reason: str) -> ColumnStep:
        """The same: what kills workers is not this."""
        return self

    def begin(self, rows: Rows) -> AbstractContextManager[Work]:
        """Compute when the steps before have finished."""
        return nullcontext(_Computing(self, rows))

    def __call__(self, frame: Any) -> Any:
        """The frame with the columns."""
        rows = Rows(frame)
        rows.add(self.made(rows).columns)
        return rows.finished()

    def made(self, rows: Rows) -> Made:
        """What `compute` gives, as Arrow arrays of the types that were promised; of no rows it is not asked.

        Raises
        ------
        ShardError
            A column is missing, of another length, or of values that do not fit its type.
        """
        if not len(rows):
            return Made.of_no_rows(self.columns)
        try:
            with blaming(self):
                given = self.compute(rows)
        except ShardError as error:  # of `Rows.column`, which does not know who asks
            raise ShardError(f"{whose(self)}: {error}") from error
        made = {}
        for name, kind in self.columns.items():
            if name not in given:
                raise ShardError(f"{type(self).__name__}: expected values of {name!r}, found {list(given)}")
            values = given[name]
            try:
                array = values if isinstance(values, pa.Array) else pa.array(values)
                array = array.cast(kind) if array.type != kind else array
            except (pa.ArrowException, TypeError, ValueError) as error:
                raise ShardError(f"{type(self).__name__}: {name!r}: expected {kind}: {error}") from error
            if len(array) != len(rows):
                raise ShardError(
                    f"{type(self).__name__}: {name!r}: expected a value for each of {len(rows)} rows, found"
                    f" {len(array)}"
                )
            made[name] = array
        return Made(made)


@dataclass
class _Computing(Work):
    step: ColumnStep
    rows: Rows

    def finish(self) -> Made:
        return self.step.made(self.rows)


def read_by(id_col: str, options: ImageOptions) -> str:
    """`Step.read_by` of vectors that a model makes of images."""
    return " ".join([id_col, options.decoder, str(options.max_pixels), *options.named])


#: Begins `Step.read_by` of classes, behind what the column is, and has the version of how they are made.
CLASSES = "classes 1"


def how_read(said: str) -> str:
    """What `read_by` gave, of `Step.read_by` of vectors or of classes."""
    return said.partition(f" {CLASSES} ")[2] or said


def check_step(step: Any) -> Step:
    """The step, if it is one.

    Raises
    ------
    ConfigError
        It lacks something that a step has, or makes columns that are none.
    """
    if not isinstance(step, Step) or isinstance(step, type):
        lacking = [name for name in sorted(_MEMBERS) if not hasattr(step, name)]
        found = step.__name__ if isinstance(step, type) else type(step).__name__
        raise ConfigError(
            f"expected a Step (curator_dask.runs.step), found {found}, which "
            + (f"lacks {', '.join(lacking)}" if lacking else "is a class: make an object of it")
        )
    columns = step.columns if isinstance(step.columns, Mapping) else dict.fromkeys(step.columns)
    wrong = {k: v for k, v in columns.items() if not (isinstance(k, str) and isinstance(v, pa.DataType))}
    if wrong or not (columns or not step.keeps_rows):  # a filter makes none
        raise ConfigError(
            f"{type(step).__name__}.columns: expected names with types of pyarrow's, found {wrong or 'none'}"
        )
    unknown = step.needs - NEEDS
    if unknown:
        raise ConfigError(f"{type(step).__name__}.needs: expected some of {sorted(NEEDS)}, found {unknown}")
    return step


_MEMBERS = (
    "label",
    "columns",
    "needs",
    "recipe",
    "keeps_rows",
    "arguments",
    "read_by",
    "describe",
    "give_up",
)


def meta_with(meta: Any, steps: Sequence[Step]) -> Any:
    """An empty frame with the columns that steps make last, ``image_error`` the very last."""
    added = {name: kind for step in steps for name, kind in step.columns.items()}
    errors = added.pop(ERROR_COLUMN, None)
    if errors is not None:
        added[ERROR_COLUMN] = errors
    return with_columns(meta, {name: pa.array([], kind) for name, kind in added.items()})


def types_of(frame: Any) -> pa.Schema:
    """The Arrow types of a frame's columns."""
    return backend.frame_to_arrow(frame).schema
