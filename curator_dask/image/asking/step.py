"""Asking about the images of one partition, on the worker that holds it: the step of `QuestionModel`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.decode.batches import Batch
from curator_dask.decode.spec import ImageOptions
from curator_dask.errors import ConfigError, ImageError, ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.record import FIELDS
from curator_dask.image.asking.remarks import remark_answers
from curator_dask.image.classifiers.seeing import SeeImages
from curator_dask.models.asker import Answers, Asker
from curator_dask.models.asking import QuestionSpec
from curator_dask.models.by_shape import AHEAD
from curator_dask.models.questions import ANSWER, EXPECTED, FILLED, MASS, PROBABILITY, numbers_of
from curator_dask.runs.step import Made, Rows, Wanted, Work
from curator_dask.storage import Options

#: Of how columns are made of likelihoods: it changes with what they come to.
_VERSION = "answers 1"
#: What the columns of answers are.
_OF = "of"


@dataclass(frozen=True)
class AskImages(SeeImages):
    """The step that adds how likely answers are to a question about the images of a partition.

    Attributes
    ----------
    spec
        Builds the model, once a worker; it has the question and the answers.
    name
        Begins the names of the columns.
    names
        Of each answer the end of its column's name.
    id_col, options, storage_options, settings, given_up
        See `SeeImages`.
    """

    spec: QuestionSpec
    name: str
    names: tuple[str, ...]
    id_col: str
    options: ImageOptions
    storage_options: Options = None
    settings: str = "null"
    given_up: str | None = None

    @property
    def kinds(self) -> dict[str, tuple[Any, ...]]:
        """The likeliest answer and its probability, that of each, and what they come to together.

        Of numbers also what is expected; of a question that names columns, whether a row was asked.
        """
        ends: dict[str, tuple[str, ...]] = {ANSWER: (ANSWER,), PROBABILITY: (PROBABILITY,)}
        ends |= {name: (_OF, text) for name, text in zip(self.names, self.spec.answers, strict=True)}
        ends |= {EXPECTED: (EXPECTED,)} if numbers_of(self.spec.answers) is not None else {}
        ends |= {MASS: (MASS,)} | ({FILLED: (FILLED,)} if self.spec.question.fields else {})
        return {f"{self.name}_{end}": kind for end, kind in ends.items()}

    @property
    def nullable(self) -> frozenset[str]:
        """Those that a row lacks, too, that was not asked."""
        asks = self.spec.question.fields
        return frozenset(name for name, kind in self.kinds.items() if asks and kind != (FILLED,))

    @property
    def types(self) -> dict[str, pa.DataType]:
        """Of the columns, without ``image_error``."""
        own = {ANSWER: pa.string(), FILLED: pa.bool_(), EXPECTED: pa.float64()}
        return {name: own.get(kind[0], pa.float32()) for name, kind in self.kinds.items()}

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What is made of which images, besides the model, its question and its answers, which `describe` tells."""
        options = self.options
        kinds = tuple(sorted(self.kinds.items()))  # in whatever order answers are given
        return (_VERSION, self.id_col, kinds, options.decoder, options.max_pixels, *options.named)

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """By column, what the record of a file says of it."""
        of = {FIELDS: list(self.spec.question.columns)} if self.spec.question.fields else {}
        return {
            name: {"head": self.label, "recipe": fingerprint({_VERSION: kind}), **of}
            for name, kind in self.kinds.items()
        }

    def made(self, rows: Rows, values: dict[str, pa.Array], reasons: list[str | None]) -> Made:
        """The same; how many rows were not asked, or would be answered otherwise, goes into the summary."""
        mass = values[f"{self.name}_{MASS}"]
        every = pc.if_else(mass.is_valid(), pa.scalar(True), pa.scalar(None, pa.bool_()))
        remark_answers(rows, self.id_col, self.name, mass, values.get(f"{self.name}_{FILLED}", every))
        return super().made(rows, values, reasons)

    def work(self, rows: Rows, model: Asker) -> Work:
        """Ask about the images of some rows."""
        return _Asking(self, rows, model)

    def _known(self, rows: Rows) -> tuple[dict[str, pa.Array], list[str | None]] | None:
        """What is known is of the same question: rows may say something else now in the columns that it names."""
        known = super()._known(rows)
        same = known is not None and all(
            rows.has_same_texts(name, self.id_col) for name in self.spec.question.columns
        )
        return known if same else None


class _Asking(Work):
    """What is answered to the rows of one partition, as their images come."""

    def __init__(self, step: AskImages, rows: Rows, model: Asker) -> None:
        self._step, self._rows, self._model = step, rows, model
        self._said = said_by(rows, step.spec.question.columns)
        self._logs = np.full((len(rows), len(step.names)), np.nan)
        self._reasons: list[str | None] = [None] * len(rows)
        # Whole images: the model's processor does the rest.
        self.wanted = Wanted(None, replace(step.options, batch_size=AHEAD * step.options.batch_size))

    def take(self, batch: Batch) -> set[int]:
        """Ask about some images."""
        for row, reason in batch.errors.items():
            self._fail(row, reason)
        rows = batch.positions.tolist()
        asked = [
            (place, row, said) for place, row in enumerate(rows) if (said := self._said[row]) is not None
        ]
        images = [batch.pixels[place] for place, _, _ in asked]
        found = self._model(images, self._step.options.batch_size, [said for _, _, said in asked])
        return {row for (_, row, _), each in zip(asked, found, strict=True) if not self._put(row, each)}

    def finish(self) -> Made:
        """The columns, null where there is a reason, and but for one where a row was not asked."""
        logs, step = self._logs, self._step
        failed = np.array([reason is not None for reason in self._reasons], bool)
        asked = np.array([said is not None for said in self._said], bool)
        lacking = failed | ~asked
        logs[lacking] = 0.0
        most = logs.max(axis=1, initial=-np.inf, keepdims=True)
        shares = np.exp(logs - most)
        shares /= shares.sum(axis=1, keepdims=True)
        best = shares.argmax(axis=1)
        numbers = numbers_of(step.spec.answers)
        texts = pa.array(step.spec.answers, pa.string())
        values: dict[str, Any] = {
            ANSWER: texts.take(pa.array(best, mask=lacking)),
            PROBABILITY: shares[np.arange(len(best)), best],
            **dict(zip(step.names, shares.T, strict=True)),
            **({} if numbers is None else {EXPECTED: shares @ np.array(numbers)}),
            MASS: np.exp(logs).sum(axis=1),
            **({FILLED: pa.array(asked, mask=failed)} if step.spec.question.fields else {}),
        }
        made = {
            name: each if isinstance(each, pa.Array) else pa.array(each, kind, mask=lacking)
            for (name, kind), each in zip(step.types.items(), values.values(), strict=True)
        }
        return step.made(self._rows, made, self._reasons)

    def _put(self, row: int, answers: Answers) -> bool:
        if answers.reason is not None:
            self._fail(row, answers.reason)
            return False
        self._logs[row] = answers.likelihoods
        return True

    def _fail(self, row: int, reason: str) -> None:
        if self._step.options.on_error == "raise":
            raise ImageError(
                f"{self._rows.image_of(row, self._step.id_col)}: {reason}. With on_error='null' such rows have no"
                " answers and the run goes on"
            )
        self._reasons[row] = reason


def said_by(rows: Rows, columns: tuple[str, ...]) -> list[tuple[str, ...] | None]:
    """What each row says in some columns, as text; None where one of them is null, or empty.

    Raises
    ------
    ShardError
        There is no such column.
    ConfigError
        A column has neither text nor numbers.
    """
    if lacking := [name for name in columns if name not in rows.names]:
        raise ShardError(
            f"question (--question): names the column {lacking[0]!r}, and the rows here have {', '.join(rows.names)}:"
            " run the same ask over the dataset again, which has it"
        )
    values = [_texts(name, rows.column(name)) for name in columns]
    if not values:
        return [()] * len(rows)
    return [
        None if any(each is None or not each.strip() for each in said) else tuple(map(str, said))
        for said in zip(*values, strict=True)
    ]


def check_said(name: str, kind: pa.DataType) -> None:
    """Raise ConfigError where a column's values are no texts that a question takes."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    kinds = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    if pa.types.is_nested(kind) or any(is_kind(kind) for is_kind in kinds):
        raise ConfigError(
            f"question (--question): {{{name}}} is a column of {kind}: expected one of texts or numbers"
        )


def _texts(name: str, array: pa.Array) -> list[str | None]:
    check_said(name, array.type)
    return [
        None if each is None or (isinstance(each, float) and math.isnan(each)) else str(each)
        for each in array.to_pylist()
    ]
