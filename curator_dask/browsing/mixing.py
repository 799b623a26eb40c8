"""A search by what rows are to be like, and what they are not to be like: one vector of several."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from curator_dask.errors import ConfigError
from curator_dask.frames.columns import unit

#: Weight of what is not wanted, where that of what is wanted is 1. With as much, vectors of texts, which all lie to one
#: side of those of images, would leave hardly more than their difference.
AWAY = 0.5
_UNWANTED = re.compile(
    r'(?:^|(?<=\s))-(?:["“”„]([^"“”„]+)["“”]|([^\W\d_]\S*))'
)  # a telephone writes curly ones
_LEAST = 1e-3  # length of a difference that still has a direction


def parted(text: str) -> tuple[str, str]:
    """What is wanted of a text, and what is not: words behind a minus, as in ``cat -dog -"in the rain"``."""
    away = " ".join(one or other for one, other in _UNWANTED.findall(text))
    return " ".join(_UNWANTED.sub(" ", text).split()) if away else text, away


def mixed(wanted: Sequence[np.ndarray], unwanted: Sequence[np.ndarray]) -> np.ndarray:
    """The vector that is like some and unlike others: the mean of the first less `AWAY` times that of the others.

    It is Rocchio's (1971) query, of vectors of length 1.

    Parameters
    ----------
    wanted, unwanted
        Float32 (dim,), of any length but 0; of the first at least one.

    Returns
    -------
    numpy.ndarray
        Float32 (dim,), of length 1; one that is wanted alone as it is.

    Raises
    ------
    ConfigError
        Nothing is left of it.
    """
    if len(wanted) == 1 and not unwanted:
        return wanted[0]
    found = unit(np.stack(wanted)).astype(np.float64).mean(axis=0)
    if unwanted:
        found -= AWAY * unit(np.stack(unwanted)).astype(np.float64).mean(axis=0)
    length = np.linalg.norm(found)
    if length < _LEAST:
        raise ConfigError("what is wanted and what is not cancel each other out: leave some out")
    made: np.ndarray = (found / length).astype(np.float32)
    return made
