"""Scoring the vectors of one partition, on the worker that holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask import backend
from curator_dask.cache import POSSESSIONS, SpecCache
from curator_dask.errors import ConfigError, CuratorError, ShardError, WeightsError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.columns import to_array
from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.frames.record import SETTINGS
from curator_dask.image.classifiers.origins import Origin
from curator_dask.models.heads import digest_of
from curator_dask.models.weights import first_line
from curator_dask.rows.reasons import NO_VECTOR, NOT_FINITE
from curator_dask.runs.passes import RowStep
from curator_dask.runs.step import Known, Made, Rows, Work
from curator_dask.tokens import tokenize

if TYPE_CHECKING:
    import torch

    from curator_dask.models.families import Kind

#: Vectors that a head takes at once: few enough for the caches of a CPU, as each is copied once on its way.
BLOCK = 2048

#: Heads of this process; they are small.
HEADS: SpecCache[LiveHead] = POSSESSIONS.add("heads", SpecCache(capacity=8))


class Classifier(Protocol):
    """What is asked of a classifier; see `curator_dask.image.classifiers.ImageClassifier`."""

    model_name: str
    embedding_column: str
    pred_column: str
    batch_size: int
    embedding_size: int | None
    check: bool

    @property
    def arrow_type(self) -> pa.DataType:
        """That of its column."""

    @property
    def vectors(self) -> Kind | None:
        """Which vectors it is for."""

    @property
    def identity(self) -> tuple[Any, ...]:
        """What decides its scores besides the vectors."""

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of its files, by path."""

    def settings(self) -> dict[str, Any] | None:
        """What makes it again."""

    def load_model(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """The head."""

    def postprocess(self, series: Any) -> Any:
        """What becomes of scores."""


@dataclass(frozen=True)
class LiveHead:
    """A head on its device.

    Attributes
    ----------
    model
        From vectors (n, dim) to n scores.
    dim
        Length of the vectors that it takes; None: not known.
    """

    model: Callable[[Any], Any]
    dim: int | None


@dataclass(frozen=True, eq=False)
class ScoreVectors(RowStep):
    """The step that adds a column of scores, and to ``image_error`` why there is none.

    Attributes
    ----------
    classifier
        Loads the head.
    origin
        What made the vectors.
    identity, files
        Of the classifier, taken where its code and its files are: on the client.
    given_up
        Load no head: every row gets a null score and this reason.
    """

    classifier: Classifier
    origin: Origin
    identity: tuple[Any, ...]
    files: Mapping[str, str]
    token: str
    given_up: str | None = None

    needs = frozenset({"rows", "vectors"})

    @classmethod
    def of(cls, classifier: Classifier, origin: Origin) -> ScoreVectors:
        """Describe what a classifier does to vectors."""
        identity, files = classifier.identity, classifier.files
        return cls(classifier, origin, identity, files, tokenize(identity, vars(classifier), files, origin))

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self.token, self.given_up)

    @property
    def label(self) -> str:
        """The head's name."""
        return self.classifier.model_name

    @property
    def owner(self) -> str:
        """The same with its class."""
        return f"{type(self.classifier).__qualname__} {self.label}"

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The scores, and why there is none."""
        return {self.classifier.pred_column: self.classifier.arrow_type, ERROR_COLUMN: pa.string()}

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What decides a score besides the vector."""
        head = self.classifier
        return ("score", *self.identity, head.embedding_column, head.pred_column, str(head.arrow_type))

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """By its column, what the record of a file says of the head."""
        head = self.classifier
        said = {
            "head": head.model_name,
            "vectors": head.embedding_column,
            "recipe": fingerprint({"recipe": self.recipe}),
            "checked": head.check,
        }
        settings = head.settings()
        return {head.pred_column: said if settings is None else {**said, SETTINGS: settings}}

    def describe(self) -> dict[str, dict[str, Any]]:
        """Load the head, see whether it is for these vectors; of vectors it makes none."""
        if self.given_up is None:
            with HEADS.lease(self.token, self._build):
                pass
        return {}

    @contextmanager
    def begin(self, rows: Rows) -> Iterator[Work]:
        """Have the head ready for some rows."""
        if self.given_up is not None or not len(rows):
            yield _Scoring(self, rows, None)
            return
        name, kind = self.classifier.pred_column, self.classifier.arrow_type
        known = rows.known_columns({name: kind}, name, vectors=self.classifier.embedding_column)
        if known is not None:
            yield Known(Made(known[0], {name: known[1]} if any(known[1]) else {}))
            return
        with HEADS.lease(self.token, self._build) as head:
            yield _Scoring(self, rows, head)

    def _build(self) -> LiveHead:
        for path, digest in self.files.items():
            found = digest_of(path)
            if found != digest:
                raise WeightsError(
                    f"{path}: expected the file with SHA-256 {digest}, which the client has, found {found} here. Give"
                    " every node the same file"
                )
        classifier = self.classifier
        if classifier.check and classifier.vectors is not None:
            self.origin.check(classifier.vectors, self.label)
        model = classifier.load_model(backend.current().torch_device)
        dim = getattr(model, "dim", None) or classifier.embedding_size
        self.origin.check_length(dim, self.label)
        return LiveHead(model, dim)


class _Scoring(Work):
    """The scores of the rows of one partition.

    Parameters
    ----------
    step
        Which.
    rows
        The rows.
    head
        None: every row is given up, or there is none.
    """

    def __init__(self, step: ScoreVectors, rows: Rows, head: LiveHead | None) -> None:
        self._step, self._rows, self._head = step, rows, head
        self._classifier = step.classifier

    def finish(self) -> Made:
        """The scores, null where there is a reason."""
        name, kind = self._classifier.pred_column, self._classifier.arrow_type
        if self._head is None:
            reasons = [self._step.given_up] * len(self._rows)
            return Made({name: pa.nulls(len(self._rows), kind)}, {name: reasons} if reasons else {})
        vectors = to_array(self._rows.column(self._classifier.embedding_column))
        valid = vectors.is_valid().to_numpy(zero_copy_only=False)
        scores = self._scores(vectors)
        good = np.isfinite(scores) if scores.dtype.kind == "f" else np.ones(len(scores), bool)
        values = self._finished(scores)
        if pa.types.is_floating(values.type):
            good &= pc.is_finite(values).fill_null(False).to_numpy(zero_copy_only=False)
        place = np.full(len(valid), len(scores))
        place[np.flatnonzero(valid)[good]] = np.flatnonzero(good)
        # The place behind the last is that of null.
        column = pa.concat_arrays([values, pa.nulls(1, values.type)]).take(pa.array(place))
        return Made({name: column}, self._reasons(name, valid, place < len(scores)))

    def _reasons(self, name: str, valid: np.ndarray, scored: np.ndarray) -> dict[str, list[str | None]]:
        if scored.all():
            return {}
        embedding = self._classifier.embedding_column
        reasons: list[str | None] = [None] * len(valid)
        of_vectors = self._rows.reasons(embedding) if not valid.all() else reasons
        for row in np.flatnonzero(~scored):
            if valid[row]:
                reasons[row] = f"{NOT_FINITE}: {self._step.label} gave NaN or infinity"
            else:
                reasons[row] = of_vectors[row] or f"{NO_VECTOR}: {embedding} is null"
        return {name: reasons}

    def _scores(self, vectors: pa.Array) -> np.ndarray:
        """Those of the vectors that are not null, one after the other."""
        import torch

        assert self._head is not None
        size = self._classifier.batch_size if self._classifier.batch_size > 0 else BLOCK
        device = backend.current().torch_device
        done: list[np.ndarray] = [np.zeros(0, np.float32)]
        with torch.inference_mode():
            for start in range(0, len(vectors), size):
                matrix = self._matrix(vectors.slice(start, size))
                if len(matrix):
                    done.append(self._one(torch.tensor(matrix).to(device)))
        return np.concatenate(done[1:]) if len(done) > 1 else done[0]

    def _matrix(self, vectors: pa.Array) -> np.ndarray:
        """Some vectors as a matrix, float32, without those that are null."""
        vectors = vectors.drop_null()
        lengths = pc.unique(vectors.value_lengths()).to_pylist() if len(vectors) else []
        dim = (self._head.dim if self._head else None) or next(iter(lengths), 0)
        if lengths not in ([], [dim]):
            raise ShardError(
                f"{self._step.label}: expected vectors of {dim} values in"
                f" {self._classifier.embedding_column!r}, found {lengths[:3]}. Take the head that belongs to them"
            )
        values: np.ndarray = vectors.flatten().to_numpy(zero_copy_only=False)
        return values.astype(np.float32, copy=False).reshape(len(vectors), dim)

    def _one(self, vectors: Any) -> np.ndarray:
        """The scores of some vectors."""
        import torch

        assert self._head is not None
        try:
            model = self._head.model
            scores = torch.as_tensor(backend.current().again_if_full(lambda: model(vectors)))
        except CuratorError:
            raise
        except Exception as error:  # of a user's own head
            raise ShardError(
                f"{self._step.owner}: the head failed on vectors {list(vectors.shape)}: {type(error).__name__}:"
                f" {first_line(error)}"
            ) from error
        if scores.numel() != len(vectors):
            raise ConfigError(
                f"{self._step.label}: expected one score a vector, {len(vectors)} of them; the head gave"
                f" {list(scores.shape)}. Have load_model give what takes the class, or the largest, of several"
            )
        scores = scores.reshape(-1).cpu()
        if scores.dtype in (torch.float16, torch.bfloat16):
            scores = scores.float()
        return np.asarray(scores)

    def _finished(self, scores: np.ndarray) -> pa.Array:
        """What `postprocess` makes of scores, as the column's type."""
        name, kind = self._classifier.pred_column, self._classifier.arrow_type
        series = backend.series_of(self._rows.frame, pa.array(scores))
        array = to_array(self._classifier.postprocess(series))
        if len(array) != len(scores):
            raise ShardError(
                f"{self._step.label}: postprocess: expected a value for each of {len(scores)} scores, found"
                f" {len(array)}"
            )
        try:
            return array if array.type == kind else array.cast(kind)
        except pa.ArrowException as error:
            raise ShardError(
                f"{self._step.label}: {name!r}: expected {kind}: {error}. Give another pred_type"
            ) from error
