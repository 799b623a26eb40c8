"""`fit_head`: a linear head for an output's vectors, from labels of some of its rows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

import curator_dask
from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.image.fitting.copies import EPS, Copies
from curator_dask.image.fitting.figures import doubtful, figures_of, lines_of
from curator_dask.image.fitting.labels import Labels, labels_of
from curator_dask.image.fitting.regression import fit, sigmoid
from curator_dask.image.fitting.rows import Labelled, labelled_rows
from curator_dask.models.heads import PROBABILITY, SAID, VECTORS, entry_of, read_tensors
from curator_dask.outputs.nearest import Hit
from curator_dask.outputs.placing import put
from curator_dask.settings import absolute
from curator_dask.storage import Options

MOST = 20_000  # rows that a head is fitted to
FITTED_TO = "fitted_to"  # in what a file says of its head
_DOUBTFUL = 24


@dataclass(frozen=True)
class FittedHead:
    """A head, and how well it does on rows that it has not seen.

    Attributes
    ----------
    weight, bias
        Float32 (1, dim) and (1,), for vectors as they are in the files.
    labels, labelled
        What it was fitted to.
    scores
        Float64 (n,): of each of these rows the score by a head that was fitted without it.
    freedom
        How freely the weights grow, of `curator_dask.image.fitting.regression.FREEDOMS`.
    figures
        Of these scores, as `curator_dask.image.fitting.figures.figures_of` has them.
    digest
        Of all that decides the weights: vectors, labels, settings and this package's version.
    copies
        Which rows are near copies of one another, and whether they were left out together.
    """

    weight: np.ndarray
    bias: np.ndarray
    labels: Labels = field(repr=False)
    labelled: Labelled = field(repr=False)
    scores: np.ndarray = field(repr=False)
    freedom: float
    figures: Mapping[str, Any]
    digest: str
    copies: Copies

    @property
    def rows(self) -> pd.DataFrame:
        """``key``, ``url``, ``label`` (1 and 0 of kinds) and ``score``, by a head that has not seen it, of each row."""
        found = {"key": self.labelled.keys, "url": self.labelled.urls}
        return pd.DataFrame({**found, "label": self.labels.values, "score": self.scores})

    def doubtful(self, most: int = _DOUBTFUL) -> list[Hit]:
        """Rows whose label speaks most against their score, the worst first: look whether the label is right."""
        return [
            Hit(float(self.scores[row]), self.labelled.keys[row], self.labelled.urls[row], self._label(row))
            for row in doubtful(self.labels, self.scores, most)
        ]

    def _label(self, row: int) -> str:
        value = self.labels.values[row]
        if self.labels.kind is None:
            return f"label {value:g}"
        return f"label {self.labels.kind}" if value else f"label not {self.labels.kind}"

    def __str__(self) -> str:
        lines = [self.labelled.told, *([self.copies.told] if self.copies.told else [])]
        lines += lines_of(self.labels, dict(self.figures))
        if against := self.doubtful(5):
            lines.append("labels that speak most against the score, by a head that has not seen the row:")
            lines += [
                f"  {hit.score:.3f}  {hit.caption}  {hit.name}  {hit.url or ''}".rstrip() for hit in against
            ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Counts and figures, for JSON."""
        counts = {"rows": len(self.labelled), "labelled": self.labelled.found}
        more = {
            "without_vector": self.labelled.without_vector,
            "overruled": self.labelled.overruled,
            "label": self.labels.name,
            "kind": self.labels.kind,
        }
        return {**counts, **more, **self.copies.to_dict(), **self.figures}

    def as_bytes(self) -> bytes:
        """The file that `save` writes."""
        from safetensors.numpy import save

        info = self.labelled.info
        said = {
            PROBABILITY: self.labels.kind is not None,
            VECTORS: None if info is None else dict(info),
            FITTED_TO: self.digest,
        }
        # One entry: safetensors writes several in an order that changes from process to process.
        return bytes(
            save({"weight": self.weight, "bias": self.bias}, {SAID: json.dumps(said, sort_keys=True)})
        )

    def is_in(self, path: str | os.PathLike[str]) -> bool:
        """Whether a file has the head of the same vectors, labels and settings, and is not damaged.

        Its weights may differ in their last digits: they were found with another number of threads, or elsewhere.
        """
        if fitted_to(path) != self.digest:
            return False
        found = {name: tensor.numpy() for name, tensor in read_tensors(os.fspath(path)).items()}
        own = {"weight": self.weight, "bias": self.bias}
        return found.keys() == own.keys() and all(
            found[name].shape == values.shape
            and np.allclose(found[name], values, rtol=1e-2, atol=1e-3 * np.abs(self.weight).max())
            for name, values in own.items()
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as ``.safetensors``, whole or not at all: `HeadClassifier` and ``score --head`` take it.

        Raises
        ------
        ConfigError
            It is a URL.
        OutputError
            It cannot be written.
        """
        put(os.fspath(absolute(path)), self.as_bytes(), None)


def fit_head(
    path: str | os.PathLike[str],
    label: str,
    *,
    labels: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    positive: str | float | bool | None = None,
    column: str = EMBEDDING_COLUMN,
    most: int = MOST,
    seed: int = 0,
    copies: float = EPS,
    storage_options: Options = None,
) -> FittedHead:
    """Fit a linear head to the rows of an output that have a label, in this process.

    Two kinds are told apart by a logistic regression: a score is how likely a row is of the kind. Numbers are foretold
    by a ridge regression. How freely weights grow is chosen on rows that are left out, a fifth after the other; the
    figures are of these rows, too.

    Parameters
    ----------
    path
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files with lists of numbers.
    label
        Column of the labels: booleans, numbers, or text. Null is none.
    labels
        Of which table: a Parquet, CSV, TSV or JSON Lines file with a column of keys, named as in the output, and
        ``__url__`` where keys are not unique; or several: of an image that several label, the last one's label counts,
        and `Labelled.overruled` says of how many they differ. None: of the output itself.
    positive
        The value that the head tells from all others. None: true, or the larger of two numbers; more than two numbers
        are foretold as such.
    column
        Of the vectors.
    most
        Rows that it is fitted to, at most; of more with a label as many, picked by chance.
    seed
        Of what is picked by chance.
    copies
        1 - cosine up to which two rows are near copies, as of `curator_dask.dedup`: they are left out together, as a
        head does well on a row whose copy it was fitted to. Where that would be most rows, a smaller one is taken. 0:
        none are looked for.
    storage_options
        For fsspec, where `path` is a URL.

    Raises
    ------
    ConfigError
        There is no such column, there are too few labels, or they are neither numbers nor of two kinds.
    DatasetError
        The vectors are of several models, or the table cannot be used.
    OutputError
        There are no vectors.
    """
    check_counts(most=most)
    if isinstance(copies, bool) or not isinstance(copies, int | float) or not 0 <= copies < 1:
        raise ConfigError(
            f"copies={copies!r} (--copies): expected 1 - cosine, a number from 0 up and below 1"
        )
    tables = () if labels is None else (labels,) if isinstance(labels, str | os.PathLike) else tuple(labels)
    labelled = labelled_rows(
        path, label, tables=tables, most=most, column=column, seed=seed, storage_options=storage_options
    )
    wanted = labels_of(labelled.labels, label, positive)
    found = fit(labelled.vectors, wanted.values, wanted.kind is not None, seed, copies)
    scores = found.unseen if wanted.kind is None else sigmoid(found.unseen)
    return FittedHead(
        found.weight.astype(np.float32)[None],
        np.array([found.bias], np.float32),
        wanted,
        labelled,
        scores,
        found.freedom,
        figures_of(wanted, scores, found.parts),
        _digest(labelled, wanted, seed, found.copies),
        found.copies,
    )


def fitted_to(path: str | os.PathLike[str]) -> str | None:
    """The digest that a file of `FittedHead.save` has; None: it is another file, or cannot be read."""
    try:
        said = entry_of(os.fspath(path), SAID) or {}
    except Exception:  # safetensors' own among them; what is wrong with it does not matter here
        return None
    return said.get(FITTED_TO)


def _digest(labelled: Labelled, labels: Labels, seed: int, copies: Copies) -> str:
    info = None if labelled.info is None else dict(labelled.info)
    parts = {"info": info, "kind": labels.kind, "seed": seed, "version": curator_dask.__version__}
    if len(copies.sizes) and copies.apart:  # else rows are cut into parts as if there were none
        parts["copies"] = hashlib.sha256(copies.groups.astype("<i8").tobytes()).hexdigest()
    digest = hashlib.sha256(fingerprint({**parts, "shape": labelled.vectors.shape}).encode())
    for array in (labelled.vectors, labels.values):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
