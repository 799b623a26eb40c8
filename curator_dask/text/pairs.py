"""Scoring the pairs of image and text of one partition, on the worker that holds it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.cache import ENCODERS, POSSESSIONS, Remembered
from curator_dask.errors import ConfigError, ShardError, WeightsError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.columns import list_to_matrix
from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.frames.record import SETTINGS
from curator_dask.image.classifiers.origins import Origin
from curator_dask.models.families import said_of, unchecked, unlike
from curator_dask.models.texts import TextEncoder, TextSpec
from curator_dask.rows.reasons import NO_VECTOR, NOT_FINITE
from curator_dask.runs.fit import refresh_model
from curator_dask.runs.passes import RowStep
from curator_dask.runs.step import Known, Made, Rows, Work
from curator_dask.text.captions import CaptionVectors
from curator_dask.text.partition import EmbedText
from curator_dask.tokens import tokenize

#: What this process has found to belong together, and to be the client's.
_CHECKED: Remembered[bool] = POSSESSIONS.add("checked pairs", Remembered(64))


@dataclass(frozen=True, eq=False)
class ScorePairs(RowStep):
    """The step that adds the cosine of the vectors of image and text, and to ``image_error`` why there is none.

    Attributes
    ----------
    column
        Of the score.
    images, texts
        What made the vectors. `texts` is None where `embed` makes them for this alone.
    embed
        Embeds the captions.
    files
        SHA-256 of the files of its model, as the client has them.
    several
        Rows have lists of captions: the score is that of the best, and there is a column of the mean.
    check
        Refuse vectors that do not belong together.
    token
        Of all these.
    settings
        JSON of the arguments that make the score again.
    given_up
        Compute nothing: every row gets a null score and this reason.
    """

    column: str
    images: Origin
    texts: Origin | None
    embed: EmbedText | None
    files: tuple[tuple[str, str], ...]
    several: bool
    check: bool
    token: str
    settings: str = "null"
    given_up: str | None = None

    needs = frozenset({"rows", "vectors"})

    @classmethod
    def of(
        cls,
        column: str,
        images: Origin,
        texts: Origin | None,
        embed: EmbedText | None,
        *,
        several: bool,
        check: bool,
        settings: Mapping[str, Any] | None = None,
    ) -> ScorePairs:
        """Describe the score, on the client, which reads the files of the model."""
        files = () if embed is None else tuple(embed.encoder.digests.items())
        token = tokenize(column, images, texts, embed, files, several, check)
        return cls(column, images, texts, embed, files, several, check, token, json.dumps(settings))

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self.token, self.given_up)

    @property
    def label(self) -> str:
        """With the model, where it is known here."""
        return "CLIP score" if self.embed is None else f"CLIP score ({self.embed.label})"

    @property
    def mean_column(self) -> str:
        """Of the mean over several captions."""
        return f"{self.column}_mean"

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The scores, and why there is none."""
        names = [self.column, *([self.mean_column] if self.several else [])]
        return {**dict.fromkeys(names, pa.float32()), ERROR_COLUMN: pa.string()}

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What decides a score besides the vectors."""
        return ("pairs", 1, self.column, self.images.column, *self._texts_of, self.several)

    @property
    def _texts_of(self) -> tuple[Any, ...]:
        if self.embed is None:
            assert self.texts is not None
            return (self.texts.column,)
        spec = self.embed.encoder
        # Files are known by their content, wherever they are.
        name = self.files or spec.model_name
        return (type(spec).__name__, name, spec.normalize, spec.long_text, self.embed.text_column)

    @property
    def text_column(self) -> str:
        """Of the captions, or of their vectors."""
        if self.embed is not None:
            return self.embed.text_column
        assert self.texts is not None
        return self.texts.column

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """By column, what the record of a file says of it."""
        said = {
            "head": self.label,
            "vectors": self.images.column,
            "texts": self.text_column,
            "recipe": fingerprint({"recipe": self.recipe}),
            "checked": self.check,
            SETTINGS: json.loads(self.settings),
        }
        return {name: dict(said) for name in self.columns if name != ERROR_COLUMN}

    def describe(self) -> dict[str, dict[str, Any]]:
        """Load the model, if any, and see whether the vectors belong together; of vectors it makes none."""
        if self.given_up is None:
            if self.embed is not None:
                refresh_model(self.embed.encoder)
            self._settle()
        return {}

    @contextmanager
    def begin(self, rows: Rows) -> Iterator[Work]:
        """Have the model ready for some rows."""
        known = self._known(rows)
        if known is not None:
            yield Known(known)
            return
        with ExitStack() as stack:
            encoder = None
            if self.given_up is None and len(rows):
                self._settle()
                if self.embed is not None:
                    spec = self.embed.encoder
                    encoder = stack.enter_context(ENCODERS.lease(spec, spec.build))
            yield _Scoring(self, rows, encoder)

    def _known(self, rows: Rows) -> Made | None:
        """What an earlier run has made, where it is captions that would be embedded for the score alone."""
        if self.embed is None or self.given_up is not None:
            return None
        made = Made()
        for name in (each for each in self.columns if each != ERROR_COLUMN):
            found = rows.known_columns({name: pa.float32()}, name, vectors=self.images.column)
            if found is None:
                return None
            made.columns |= found[0]
            made.reasons |= {name: found[1]} if any(found[1]) else {}
        return made if rows.has_same_texts(self.embed.text_column, self.embed.id_col) else None

    def _settle(self) -> None:
        _CHECKED.get(self.token, self._look)

    def _look(self) -> bool:
        if self.embed is not None:
            check_files(self.embed.encoder, self.files)
        if self.check:
            of_text = self.embed.describe()[self.embed.column] if self.embed is not None else None
            check_together(self.images, of_text, self.texts, self.label)
        return True


def check_files(spec: TextSpec, files: tuple[tuple[str, str], ...]) -> None:
    """Raise WeightsError where the files of a model are not those that the client has."""
    if files and spec.digests != dict(files):
        raise WeightsError(
            f"{spec.model_name}: the files here are not those that the client has. Give every node the same"
        )


def check_together(images: Origin, of_text: Any, texts: Origin | None, label: str) -> None:
    """Raise ConfigError where vectors of images and of texts are not of one space, or nothing says that they are.

    Parameters
    ----------
    images, texts
        What made the vectors.
    of_text
        What makes those of the texts, where it is known; None: `texts` says so.
    label
        Of what is to be computed of them.
    """
    where = "the captions" if texts is None else repr(texts.column)
    of_text = of_text if of_text is not None else texts.info() if texts is not None else None
    of_images = images.info()
    dims = [(of_images or {}).get("dim", images.dim), (of_text or {}).get("dim", texts and texts.dim)]
    override = unchecked("they are of one space", *dims)
    for name, info in ((repr(images.column), of_images), (where, of_text)):
        if info is None:
            raise ConfigError(
                f"{label}: nothing says what made the vectors of {name}. Embed images with ClipImageEmbedder and"
                f" captions with ClipTextEmbedder, of one model{override}"
            )
    assert of_images is not None and of_text is not None
    found = unlike(of_images, of_text)
    if found:
        raise ConfigError(
            f"{label}: {images.column!r} has vectors of {said_of(of_images)}, and {where} those of {said_of(of_text)},"
            f" which do not belong together: {'; '.join(found)}. Embed both with one model, by ClipImageEmbedder and"
            f" ClipTextEmbedder{override}"
        )


class _Scoring(Work):
    """The scores of the rows of one partition.

    Parameters
    ----------
    step
        Which.
    rows
        The rows.
    encoder
        None: vectors of texts are in a column, or every row is given up, or there is none.
    """

    def __init__(self, step: ScorePairs, rows: Rows, encoder: TextEncoder | None) -> None:
        self._step, self._rows, self._encoder = step, rows, encoder

    def finish(self) -> Made:
        """The scores, null where there is a reason."""
        step, count = self._step, len(self._rows)
        names = [name for name in step.columns if name != ERROR_COLUMN]
        if step.given_up is not None or not count:
            reasons = {name: [step.given_up] * count for name in names} if count else {}
            return Made({name: pa.nulls(count, pa.float32()) for name in names}, reasons)
        images, valid, reasons_of = vectors_of(self._rows, step.images.column)
        texts = self._texts()
        check_lengths(step.label, (step.images.column, step.text_column), images, texts.matrix)
        reasons_of = [one or other for one, other in zip(reasons_of, texts.reasons, strict=True)]
        used = valid[texts.rows]
        rows = texts.rows[used]
        cosines = cosine(images[rows], texts.matrix[used]) if len(rows) else np.zeros(0, np.float32)
        for row in rows[~np.isfinite(cosines)]:
            reasons_of[row] = f"{NOT_FINITE}: a vector has no direction"
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        scored = rows[starts]
        pooled = {step.column: np.maximum.reduceat(cosines, starts) if len(starts) else cosines}
        if step.several:
            sums = np.add.reduceat(cosines, starts) if len(starts) else cosines
            pooled[step.mean_column] = sums / np.maximum(np.diff([*starts, len(rows)]), 1)
        null = np.array([reason is not None for reason in reasons_of], bool)
        made = {}
        for name, values in pooled.items():
            column = np.zeros(count, np.float32)
            column[scored] = values
            made[name] = pa.array(column, mask=null)
        return Made(made, {name: list(reasons_of) for name in names} if null.any() else {})

    def _texts(self) -> CaptionVectors:
        step, embed = self._step, self._step.embed
        if embed is not None:
            assert self._encoder is not None
            return CaptionVectors.of(
                self._rows, embed.text_column, self._encoder, embed.batch_size, embed.id_col
            )
        matrix, valid, said = vectors_of(self._rows, step.text_column)
        return CaptionVectors(matrix[valid], np.flatnonzero(valid), said)


def check_lengths(label: str, columns: tuple[str, str], images: np.ndarray, texts: np.ndarray) -> None:
    """Raise ShardError where the vectors (n, dim) of two columns are of two lengths, if both have some."""
    if images.size and texts.size and images.shape[1] != texts.shape[1]:
        raise ShardError(
            f"{label}: {columns[0]!r} has vectors of {images.shape[1]} values, {columns[1]!r} of {texts.shape[1]}:"
            " expected both from one model"
        )


def vectors_of(rows: Rows, column: str) -> tuple[np.ndarray, np.ndarray, list[str | None]]:
    """Vectors (n, dim) of a column; bool (n,), which rows have one; and of each row that has none the reason."""
    matrix, valid = list_to_matrix(rows.column(column))
    said: list[str | None] = [None] * len(valid)
    if not valid.all():
        known = rows.reasons(column)
        for row in np.flatnonzero(~valid):
            said[row] = known[row] or f"{NO_VECTOR}: {column} is null"
    return matrix, valid, said


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of the rows of two matrices (n, dim): float32 (n,), NaN where a row is zero."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines: np.ndarray = np.einsum("nd,nd->n", one, other) / norms
    return cosines.astype(np.float32)
