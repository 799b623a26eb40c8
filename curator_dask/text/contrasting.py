"""Scoring pairs of image and text against batches of others, on the worker that holds the pairs.

The formula is that of `NegClipLoss`. Products are made in blocks of float32, on the device, and become exponentials and
sums where they lie. From a row's products that of its own pair is taken first, and where one is too large all the same,
the largest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curator_dask import backend
from curator_dask.cache import ENCODERS, POSSESSIONS, Remembered
from curator_dask.errors import ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.columns import unit
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.record import BALANCE, TEXTS
from curator_dask.image.classifiers.origins import Origin
from curator_dask.models.texts import TextEncoder
from curator_dask.rows.draws import row_digests
from curator_dask.rows.reasons import NOT_FINITE
from curator_dask.runs.fit import refresh_model
from curator_dask.runs.passes import RowStep
from curator_dask.runs.step import Made, Rows, Work
from curator_dask.text.captions import CaptionVectors
from curator_dask.text.contrast import Batch, Batches
from curator_dask.text.pairs import check_files, check_lengths, check_together, cosine, vectors_of
from curator_dask.text.partition import EmbedText
from curator_dask.tokens import tokenize

if TYPE_CHECKING:
    import torch

_ROWS = 1024  # of a block of products
_COLUMNS, _CACHED = 8192, 1024  # of it: 32 MB, and on a CPU 4, which stay in a cache

_CHECKED: Remembered[bool] = POSSESSIONS.add("checked contrasts", Remembered(64))


def log_sums(
    left: torch.Tensor, right: torch.Tensor, own: torch.Tensor, places: torch.Tensor, temperature: float
) -> torch.Tensor:
    """float32 (n,): ``log(sum(exp(left @ right.T / temperature)))`` over `right`, a row's own pair once.

    Parameters
    ----------
    left, right
        float32 (n, dim) and (m, dim), of length 1.
    own
        float32 (n,): the product of a row and its own counterpart.
    places
        int64 (n,): where in `right` that is, and -1 of rows whose counterpart is not there.
    temperature
        By which products are divided.
    """
    import torch

    # Less the row's own product, of which the exponential is 1: what becomes 0 by that is nothing beside it. So one
    # pass over products that are in the cache is enough, where the largest of each row would have to be found first.
    left, own = left / temperature, own / temperature
    total = (places < 0).to(left.dtype)
    columns = _CACHED if left.device.type == "cpu" else _COLUMNS
    room = left.new_empty((len(left), columns))
    for start in range(0, len(right), columns):
        others = right[start : start + columns]
        block = room[:, : len(others)] if len(others) < columns else room
        torch.addmm(own[:, None], left, others.T, beta=-1, out=block)
        inside = ((places >= start) & (places < start + len(others))).nonzero()[:, 0]
        block[inside, places[inside] - start] = 0
        total += block.exp_().sum(1)
    found = own + total.log()
    # Of others that fit far better than the own one the exponential is too much for float32.
    some = (~torch.isfinite(total)).nonzero()[:, 0]
    if len(some):
        found[some] = _less_the_largest(left[some], right, own[some], places[some])
    return found


def _less_the_largest(
    left: torch.Tensor, right: torch.Tensor, own: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """The same of rows that are divided by the temperature, whatever their products are."""
    import torch

    total = torch.where(places < 0, own, torch.full_like(own, -torch.inf))
    for start in range(0, len(right), _COLUMNS):
        block = left @ right[start : start + _COLUMNS].T
        inside = ((places >= start) & (places < start + block.shape[1])).nonzero()[:, 0]
        block[inside, places[inside] - start] = own[inside]
        total = torch.logaddexp(total, torch.logsumexp(block, 1))
    return total


def normalisation(
    images: np.ndarray, texts: np.ndarray, digests: np.ndarray, batch: Batch, temperature: float
) -> np.ndarray:
    """float64 (n,): the term R of some pairs by one batch.

    Parameters
    ----------
    images, texts
        float32 (n, dim), of length 1.
    digests
        Of the rows, by which they are found in the batch.
    batch, temperature
        What they are contrasted with, and how sharply.
    """
    import torch

    device = backend.current().torch_device
    others = [torch.from_numpy(each).to(device) for each in (batch.texts, batch.images)]
    found, places = np.empty(len(images)), batch.places(digests)
    with torch.inference_mode():
        for start in range(0, len(images), _ROWS):
            part = slice(start, start + _ROWS)
            mine = [torch.from_numpy(np.ascontiguousarray(each[part])).to(device) for each in (images, texts)]
            own, at = (mine[0] * mine[1]).sum(1), torch.from_numpy(places[part]).to(device)
            sums = [log_sums(*pair, own, at, temperature) for pair in zip(mine, others, strict=True)]
            found[part] = temperature / 2 * (sums[0].double() + sums[1].double()).cpu().numpy()
    return found


@dataclass(frozen=True, eq=False)
class ContrastPairs(RowStep):
    """The step that adds the negative CLIP loss of pairs, and to ``image_error`` why there is none.

    Attributes
    ----------
    column
        Of the score.
    images, texts
        What made the vectors. `texts` is None where `embed` makes them for this alone.
    embed, files
        Embeds the captions; and SHA-256 of the files of its model, as the client has them.
    batches
        What pairs are contrasted with.
    temperature, seed
        See `NegClipLoss`.
    how
        These and what batches were asked for, in words.
    id_col
        Column of the keys.
    check
        Refuse vectors that do not belong together.
    given_up
        Compute nothing: every row gets a null score and this reason.
    """

    column: str
    images: Origin
    texts: Origin | None
    embed: EmbedText | None
    files: tuple[tuple[str, str], ...]
    batches: Batches
    temperature: float
    seed: int
    how: str
    id_col: str
    check: bool
    given_up: str | None = None

    label = "negCLIPLoss"
    needs = frozenset({"rows", "vectors"})

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self._token, self.given_up)

    @property
    def _token(self) -> str:
        return tokenize(self.recipe, self.images, self.texts, self.embed, self.files, self.check)

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The score, and why there is none."""
        return {self.column: pa.float32(), ERROR_COLUMN: pa.string()}

    @property
    def text_column(self) -> str:
        """Of the captions, or of their vectors."""
        if self.embed is not None:
            return self.embed.text_column
        assert self.texts is not None
        return self.texts.column

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What decides a score besides the vectors: the batches by their content."""
        of = (self.images.column, self.text_column, *self._model)
        return ("contrast", 1, self.column, *of, self.temperature, self.seed, self.batches.digests)

    @property
    def _model(self) -> tuple[Any, ...]:
        if self.embed is None:
            return ()
        spec = self.embed.encoder
        return (type(spec).__name__, self.files or spec.model_name, spec.normalize, spec.long_text)

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """What the record of a file says of the score."""
        head = f"{self.label} ({self.how})"
        said = {
            "head": head,
            "vectors": self.images.column,
            TEXTS: self.text_column,
            BALANCE: head,  # it depends on other rows, which may change
            "recipe": fingerprint({"recipe": self.recipe}),
            "checked": self.check,
            "temperature": self.temperature,
            "batches": list(self.batches.sizes),
            "seed": self.seed,
        }
        return {self.column: said}

    def describe(self) -> dict[str, dict[str, Any]]:
        """Load the model, if any, and see whether the vectors belong together; of vectors it makes none."""
        if self.given_up is None:
            if self.embed is not None:
                refresh_model(self.embed.encoder)
            _CHECKED.get(self._token, self._look)
        return {}

    def _look(self) -> bool:
        if self.embed is not None:
            check_files(self.embed.encoder, self.files)
        if self.check:
            of_text = self.embed.describe()[self.embed.column] if self.embed is not None else None
            check_together(self.images, of_text, self.texts, self.label)
        return True

    @contextmanager
    def begin(self, rows: Rows) -> Iterator[Work]:
        """Have the model ready for some rows."""
        with ExitStack() as stack:
            encoder = None
            if self.given_up is None and len(rows):
                _CHECKED.get(self._token, self._look)
                if self.embed is not None:
                    spec = self.embed.encoder
                    encoder = stack.enter_context(ENCODERS.lease(spec, spec.build))
            yield _Contrasting(self, rows, encoder)

    def values(
        self, images: np.ndarray, texts: np.ndarray, digests: np.ndarray, encoder: TextEncoder | None
    ) -> np.ndarray:
        """float32 (n,): the scores of pairs, of which both vectors have length 1."""
        number = len(self.batches.digests)
        terms = np.empty((number, len(images)))
        size = 0 if self.embed is None else self.embed.batch_size
        # Workers begin with different ones, so that not all embed the captions of the same.
        first = int(digests[0] % np.uint64(number)) if len(digests) else 0
        for each in [*range(first, number), *range(first)]:
            batch = self.batches.read(each, encoder, size, tokenize(self._model))
            if batch.images.shape[1] != images.shape[1]:
                raise ShardError(
                    f"{self.label}: vectors of {images.shape[1]} values, and batches of {batch.images.shape[1]}:"
                    " expected all from one model"
                )
            made = partial(normalisation, images, texts, digests, batch, self.temperature)
            terms[each] = backend.current().again_if_full(made)
        return np.asarray(cosine(images, texts) - terms.mean(0), np.float32)


class _Contrasting(Work):
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

    def __init__(self, step: ContrastPairs, rows: Rows, encoder: TextEncoder | None) -> None:
        self._step, self._rows, self._encoder = step, rows, encoder

    def finish(self) -> Made:
        """The scores, null where there is a reason."""
        step, count = self._step, len(self._rows)
        if step.given_up is not None or not count:
            reasons = {step.column: [step.given_up] * count} if count else {}
            return Made({step.column: pa.nulls(count, pa.float32())}, reasons)
        images, _, reasons_of = vectors_of(self._rows, step.images.column)
        texts, why = self._texts()
        check_lengths(step.label, (step.images.column, step.text_column), images, texts)
        reasons_of = [one or other for one, other in zip(reasons_of, why, strict=True)]
        good = np.array([each is None for each in reasons_of], bool)
        images, texts = unit(images), unit(texts)
        points = [np.isfinite(each).all(1) & each.any(1) for each in (images, texts)]
        for row in np.flatnonzero(good & ~(points[0] & points[1])):
            reasons_of[row] = f"{NOT_FINITE}: a vector has no direction"
        rows = np.flatnonzero(good & points[0] & points[1])
        found = np.zeros(count, np.float32)
        if len(rows):
            digests = row_digests(self._keys(), step.id_col, step.seed)
            found[rows] = step.values(images[rows], texts[rows], digests[rows], self._encoder)
        null = np.array([each is not None for each in reasons_of], bool)
        reasons = {step.column: reasons_of} if null.any() else {}
        return Made({step.column: pa.array(found, mask=null)}, reasons)

    def _keys(self) -> pa.Table:
        names = [each for each in (self._step.id_col, URL_COLUMN) if each in self._rows.names]
        return pa.table({name: self._rows.column(name) for name in names})

    def _texts(self) -> tuple[np.ndarray, list[str | None]]:
        embed = self._step.embed
        if embed is None:
            matrix, _, said = vectors_of(self._rows, self._step.text_column)
            return matrix, said
        assert self._encoder is not None
        made = CaptionVectors.of(self._rows, embed.text_column, self._encoder, embed.batch_size, embed.id_col)
        return made.by_row(False), made.reasons
