"""Whether half precision is enough for a model: two pictures in float32 and in half, when the model is loaded.

The pictures are always the same ones, so the choice is a fact of model and machine, known before anything is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from curator_dask.errors import ConfigError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Arithmetic; ``"auto"``: float32 on a CPU, on a GPU what the checkpoint is in, as in transformers' pipeline."""

LEAST_COSINE = 0.9999
"""Of a vector in half precision to the same in float32, for half precision to be kept."""

MOST_SHIFT = 5e-4
"""Of a probability, by half precision, for that to be kept: half of what is promised, as two pictures are not all."""

_LAYERS = ((3, 1.0), (12, 0.5), (48, 0.25))  # squares an edge, and how strong they are
_CONTRAST, _NOISE = 90, 0.03


def enough_cosine(autocast: bool | float) -> float:
    """The least cosine that an argument ``autocast`` asks for.

    Raises
    ------
    ConfigError
        It is none of True, False and a number between 0 and 1.
    """
    if isinstance(autocast, bool):
        return LEAST_COSINE
    if not isinstance(autocast, float) or not 0 < autocast < 1:
        raise ConfigError(
            f"autocast={autocast!r}: expected True, False, or the least cosine to float32 between 0 and 1"
        )
    return autocast


def pictures(height: int, width: int) -> np.ndarray:
    """Two pictures, uint8 (2, height, width, 3): shapes and detail of all sizes, and black.

    Least cosines on the two and on eight photographs, in bf16, random weights: CSATv2 0.995 and 0.979, BiT 0.9978 and
    0.9981, NFNet (L0) 0.9991 and 0.9998, ConvNeXt, ViT and Swin from 0.99992 and from 0.99996. A model without
    normalisation loses most where there is nothing to see, others where there is much.
    """
    from PIL import Image

    random = np.random.default_rng(0)
    made = random.normal(0, _NOISE, (height, width, 3))
    for edge, strength in _LAYERS:
        squares = Image.fromarray(random.integers(0, 256, (edge, edge, 3)).astype(np.uint8))
        whole = np.asarray(squares.resize((width, height), Image.Resampling.BICUBIC))
        made += strength * (whole / 127.5 - 1)
    seen = np.clip(127.5 + _CONTRAST * made, 0, 255).astype(np.uint8)
    return np.stack([seen, np.zeros_like(seen)])


def least_cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    """The least cosine of vectors (n, dim), row by row; 0 where there is none, as of NaN."""
    import torch

    cosines = torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=1)
    cosines = torch.where((one == other).all(dim=1), 1.0, cosines)  # of zeros, too
    return round(float(cosines.nan_to_num(0.0).min()), 7)


def most_shift(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far apart the probabilities of logits (n, classes) can be that differ so; infinite where one is no number.

    A softmax changes a probability p by at most p (1 - p) times the widest difference of two logits' changes, and a
    sigmoid by p (1 - p) times its logit's change: a quarter at most. So pictures of which a model is sure, and whose
    probabilities are 0 and 1 whatever its precision, tell of those too of which it is not.
    """
    change = (one.double() - other.double()).nan_to_num(float("inf"))
    widest = change.amax(dim=1).clamp(min=0) - change.amin(dim=1).clamp(max=0)
    return float(widest.max()) / 4
