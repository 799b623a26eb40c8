"""How well a head does on rows that it has not seen, in figures and words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from curator_dask.image.fitting.labels import Labels
from curator_dask.image.fitting.regression import PARTS
from curator_dask.words import counted

_THRESHOLDS = (0.1, 0.25, 0.5, 0.75, 0.9)


def figures_of(labels: Labels, scores: np.ndarray, parts: np.ndarray) -> dict[str, Any]:
    """Figures of scores of rows that were not seen.

    Parameters
    ----------
    labels
        Of the rows.
    scores
        Float64 (n,): how likely the kind is, or numbers as the labels are.
    parts
        Which part each row was left out with; int (n,).

    Returns
    -------
    dict
        Of kinds: ``auc`` (how likely a row of the kind has a higher score than one that is not), over all rows, and
        ``auc_of_parts``; ``right``, the share of rows on their side of 0.5, and ``commonest``, that of the commoner
        kind; ``thresholds``: of each the share of rows that are ``kept`` above it, the share of these that are of the
        kind (``precision``), and the share of the kind that is kept (``recall``). Of numbers: ``r2``, the share of the
        variance that is foretold; ``rank_correlation`` (Spearman's) and ``mean_error``.
    """
    wanted = labels.values
    if labels.kind is None:
        rest = float(((scores - wanted) ** 2).sum() / ((wanted - wanted.mean()) ** 2).sum())
        ranks = pd.DataFrame({"wanted": wanted, "found": scores}).corr("spearman")
        return {
            "r2": 1 - rest,
            "rank_correlation": float(ranks.loc["wanted", "found"]),
            "mean_error": float(np.abs(scores - wanted).mean()),
        }
    share = float(wanted.mean())
    return {
        "auc": _auc(wanted, scores),
        "auc_of_parts": [_auc(wanted[parts == part], scores[parts == part]) for part in range(PARTS)],
        "right": float(((scores > 0.5) == (wanted == 1)).mean()),
        "commonest": max(share, 1 - share),
        "thresholds": [_at(threshold, wanted == 1, scores) for threshold in _THRESHOLDS],
    }


def lines_of(labels: Labels, figures: dict[str, Any]) -> Iterator[str]:
    """The figures in words."""
    if labels.kind is None:
        yield (
            f"{labels.name}: numbers from {labels.values.min():g} to {labels.values.max():g}. Of rows that it has not"
            f" seen the head foretells {max(0, figures['r2']):.0%} of the variance; rank correlation"
            f" {figures['rank_correlation']:.2f}; it is {figures['mean_error']:.3g} off on average"
        )
        return
    low, high = min(figures["auc_of_parts"]), max(figures["auc_of_parts"])
    rows = f"{int(labels.values.sum()):,} of {counted(len(labels.values), 'row')}"
    yield (
        f"{labels.name}: {rows} are {labels.kind!r}. Rows that the head has not seen: AUC {figures['auc']:.3f}"
        f" ({low:.3f} to {high:.3f} by fifths); {figures['right']:.1%} are on their side of 0.5, where the commoner"
        f" kind is {figures['commonest']:.1%}"
    )
    yield f"{'score >':>9} {'rows kept':>10} {'of them ' + labels.kind:>20} {'of all ' + labels.kind:>20}"
    for each in figures["thresholds"]:
        precision = "-" if each["precision"] is None else f"{each['precision']:.1%}"
        yield f"{each['threshold']:>9} {each['kept']:>10.1%} {precision:>20} {each['recall']:>20.1%}"


def doubtful(labels: Labels, scores: np.ndarray, most: int) -> list[int]:
    """Rows whose label speaks most against their score: it may be the label that is wrong. The worst first."""
    wanted = labels.values
    off = np.abs(scores - wanted)
    order = np.argsort(-off, kind="stable")[:most]
    if labels.kind is not None:
        return [int(row) for row in order if (scores[row] > 0.5) != (wanted[row] == 1)]
    return [int(row) for row in order if off[row] > 2 * off.std()]


def _auc(wanted: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(wanted, scores))


def _at(threshold: float, are: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    kept = scores > threshold
    return {
        "threshold": threshold,
        "kept": float(kept.mean()),
        "precision": float(are[kept].mean()) if kept.any() else None,
        "recall": float(kept[are].mean()),
    }
