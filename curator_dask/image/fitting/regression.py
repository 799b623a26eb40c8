"""Linear maps of vectors to labels: scikit-learn's logistic and ridge regression, the freedom of their weights chosen.

How freely weights grow is decided by what they foretell of rows that they were not fitted to: all rows are cut into
parts, and each part is foretold by a map that is fitted to the others. Rows that are near copies of one another are of
one part.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np

from curator_dask.image.fitting.copies import EPS, Copies, alone, find_copies

#: scikit-learn's C of a logistic regression, and 1/alpha of a ridge regression, of vectors whose every value is scaled
#: to a variance of 1: from weights that hardly grow to such as do as they like.
FREEDOMS = tuple(float(each) for each in np.logspace(-6, 1, 8))
PARTS = 5
_ITERATIONS = 2000


@dataclass(frozen=True)
class Fit:
    """A map, and what such a map foretells of rows that it has not seen.

    Attributes
    ----------
    weight, bias
        Float64 (dim,) and a number. Of kinds what comes out is the logit.
    unseen
        Float64 (n,): of each row what the map that was fitted without its part gives.
    parts
        Which part each row is of; int (n,).
    freedom
        Of `FREEDOMS`, the one that was chosen.
    copies
        Which rows are near copies of one another.
    """

    weight: np.ndarray
    bias: float
    unseen: np.ndarray
    parts: np.ndarray
    freedom: float
    copies: Copies


def fit(vectors: np.ndarray, wanted: np.ndarray, kinds: bool, seed: int, eps: float = EPS) -> Fit:
    """Fit a map.

    Parameters
    ----------
    vectors
        Float32 (n, dim).
    wanted
        Float64 (n,): 0 and 1 if they are `kinds`, else any numbers.
    kinds
        Whether there are two.
    seed
        Of how rows are cut into parts.
    eps
        1 - cosine up to which rows are near copies, which are of one part; 0: none are.
    """
    from threadpoolctl import threadpool_limits

    copies, parts = _cut(vectors, wanted, kinds, seed, eps)
    # An iteration is a few products of microseconds: threads of BLAS would spend ten times that on waiting, awake.
    with threadpool_limits(1):
        return _fit(vectors, wanted, kinds, parts, copies)


def _cut(
    vectors: np.ndarray, wanted: np.ndarray, kinds: bool, seed: int, eps: float
) -> tuple[Copies, np.ndarray]:
    """Near copies, and the part of each row."""
    first = None
    for copies in find_copies(vectors, eps) if eps else ():
        if not len(copies.sizes):
            break
        first = first or copies
        parts = _parts_of_groups(wanted, kinds, seed, copies.groups)
        if parts is not None:
            return copies, parts
    plain = _parts(wanted, kinds, seed)
    return (alone(len(wanted)) if first is None else replace(first, apart=False)), plain


def _fit(vectors: np.ndarray, wanted: np.ndarray, kinds: bool, parts: np.ndarray, copies: Copies) -> Fit:
    model, loss = (_logistic, _log_loss) if kinds else (_ridge, _squared)
    best, freedom, unseen = np.inf, FREEDOMS[0], np.zeros(len(wanted))
    for each in FREEDOMS:
        found = np.empty(len(wanted))
        for part in range(PARTS):
            left_out = parts == part
            weight, bias = model(vectors[~left_out], wanted[~left_out], each)
            found[left_out] = vectors[left_out] @ weight + bias
        if (now := loss(found, wanted)) >= best:
            break  # with more freedom it is worse still, and takes longest
        best, freedom, unseen = now, each, found
    weight, bias = model(vectors, wanted, freedom)
    return Fit(weight, bias, unseen, parts, freedom, copies)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logits)), without overflow."""
    found: np.ndarray = np.exp(-np.logaddexp(0, -logits))
    return found


def _parts(wanted: np.ndarray, kinds: bool, seed: int) -> np.ndarray:
    from sklearn.model_selection import KFold, StratifiedKFold

    cut = (StratifiedKFold if kinds else KFold)(PARTS, shuffle=True, random_state=seed)
    parts = np.empty(len(wanted), np.int64)
    for part, (_, rows) in enumerate(cut.split(wanted, wanted)):
        parts[rows] = part
    return parts


def _parts_of_groups(wanted: np.ndarray, kinds: bool, seed: int, groups: np.ndarray) -> np.ndarray | None:
    """Parts that groups are whole in; None where a map would be fitted to less than half, or a part lacks a kind."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    counts = np.bincount(groups)
    if len(counts) < 2 * PARTS or 2 * counts.max() > len(groups):
        return None
    cut = (StratifiedGroupKFold if kinds else GroupKFold)(PARTS, shuffle=True, random_state=seed)
    parts = np.empty(len(wanted), np.int64)
    for part, (_, rows) in enumerate(cut.split(wanted, wanted, groups)):
        parts[rows] = part
    for part in range(PARTS):
        some = wanted[parts == part]
        if not len(some) or (kinds and not 0 < some.mean() < 1):
            return None
    return parts


def _logistic(vectors: np.ndarray, wanted: np.ndarray, freedom: float) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import LogisticRegression

    scaled, mean, deviation = _scaled(vectors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that may grow as they like, and are still on their way
        model = LogisticRegression(C=freedom, max_iter=_ITERATIONS).fit(scaled, wanted)
    return _unscaled(model.coef_[0], float(model.intercept_[0]), mean, deviation)


def _ridge(vectors: np.ndarray, wanted: np.ndarray, freedom: float) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import Ridge

    scaled, mean, deviation = _scaled(vectors)
    model = Ridge(alpha=1 / freedom).fit(scaled, wanted)
    return _unscaled(model.coef_, float(model.intercept_), mean, deviation)


def _scaled(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    exact = vectors.astype(np.float64)
    mean, deviation = exact.mean(0), exact.std(0)
    deviation[deviation < 1e-12 * np.abs(exact).max(initial=1e-300)] = 1  # of values that are all the same
    return (exact - mean) / deviation, mean, deviation


def _unscaled(
    weight: np.ndarray, bias: float, mean: np.ndarray, deviation: np.ndarray
) -> tuple[np.ndarray, float]:
    """The same map, of vectors as they were."""
    weight = weight / deviation
    return weight, bias - float(weight @ mean)


def _log_loss(logits: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.logaddexp(0, np.where(wanted == 1, -logits, logits)).mean())


def _squared(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(((found - wanted) ** 2).mean())
