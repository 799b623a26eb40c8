"""Embedding the captions of one partition, on the worker that holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.cache import ENCODERS
from curator_dask.frames.columns import EMBEDDING_TYPE, vectors_to_list
from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.models.texts import TextEncoder, TextSpec
from curator_dask.runs.fit import refresh_model
from curator_dask.runs.passes import RowStep
from curator_dask.runs.step import Known, Made, Rows, Work
from curator_dask.text.captions import CaptionVectors


@dataclass(frozen=True)
class EmbedText(RowStep):
    """The step that adds vectors of captions, and to ``image_error`` why there is none.

    Attributes
    ----------
    encoder
        Builds the model, once a worker.
    id_col
        Column of the keys, for messages.
    text_column, column
        Of the captions and of the vectors.
    batch_size
        See `TextEmbedder`.
    given_up
        Load no model: every row gets a null vector and this reason.
    """

    encoder: TextSpec
    id_col: str
    text_column: str
    column: str
    batch_size: int
    given_up: str | None = None

    needs = frozenset({"rows"})

    @property
    def label(self) -> str:
        """The model's name."""
        return str(self.encoder)

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The vectors, and why there is none."""
        return {self.column: EMBEDDING_TYPE, ERROR_COLUMN: pa.string()}

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What decides a vector besides the model, which is described by itself."""
        return ("text", self.text_column, self.column)

    @property
    def read_by(self) -> dict[str, str]:
        """Which captions, and what becomes of long ones; whether they are as they were is seen row by row."""
        return {self.column: f"text {self.id_col} {self.text_column} {self.encoder.long_text}"}

    def describe(self) -> dict[str, dict[str, Any]]:
        """Load the model and say what it is; run on a worker, where the model then stays."""
        refresh_model(self.encoder)
        with ENCODERS.lease(self.encoder, self.encoder.build) as encoder:
            return {self.column: encoder.info.to_dict()}

    @contextmanager
    def begin(self, rows: Rows) -> Iterator[Work]:
        """Have the model ready for the captions of some rows."""
        if self.given_up is not None or not len(rows):
            yield _EmbeddingText(self, rows, None)
            return
        known = rows.known(self.column, self.id_col)
        if known is not None and rows.has_same_texts(self.text_column, self.id_col):
            matrix, reasons = known
            valid = np.array([reason is None for reason in reasons], bool)
            yield Known(Made({self.column: vectors_to_list(matrix, valid)}, {self.column: reasons}))
            return
        with ENCODERS.lease(self.encoder, self.encoder.build) as encoder:
            yield _EmbeddingText(self, rows, encoder)


class _EmbeddingText(Work):
    """The vectors of the captions of one partition.

    Parameters
    ----------
    step
        Which.
    rows
        The rows.
    encoder
        None: every row is given up, or there is none.
    """

    def __init__(self, step: EmbedText, rows: Rows, encoder: TextEncoder | None) -> None:
        self._step, self._rows, self._encoder = step, rows, encoder

    def finish(self) -> Made:
        """The vectors, null where there is a reason; of several captions their mean."""
        step, rows = self._step, self._rows
        if self._encoder is None:
            reasons = [step.given_up] * len(rows)
            return Made({step.column: pa.nulls(len(rows), EMBEDDING_TYPE)}, {step.column: reasons})
        made = CaptionVectors.of(rows, step.text_column, self._encoder, step.batch_size, step.id_col)
        valid = np.array([reason is None for reason in made.reasons], bool)
        matrix = made.by_row(self._encoder.info.normalized)
        return Made({step.column: vectors_to_list(matrix, valid)}, {step.column: made.reasons})
