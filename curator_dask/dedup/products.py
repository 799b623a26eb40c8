"""Which vectors of two blocks are near one another: found by fast products, decided by exact ones.

A fast product is float32, or bf16 or fp16 where these are native. All that may pass by it is decided by the same sum in
float64, a pair at a time: so a decision depends on the two vectors alone, and not on blocks, threads or devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from curator_dask import backend

if TYPE_CHECKING:
    import torch

#: How far the fast product of unit vectors may be off: bf16 keeps 8 bits of each value (2 * 2**-9 at most over a sum of
#: products of unit vectors) and of the sum (2**-9).
REDUCED_MARGIN = 3 * 2**-9 + 1e-3
MARGIN = 1e-3
_CHUNK = 2048
_SHAPE = 128  # oneDNN makes code for each shape of a product in bf16, which takes it 6 ms


def exact_dots(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64 (n,): the products of rows of two float32 matrices, each by itself."""
    done = np.empty(len(left))
    for start in range(0, len(left), _CHUNK):
        part = slice(start, start + _CHUNK)
        done[part] = (left[part].astype(np.float64) * right[part].astype(np.float64)).sum(axis=1)
    return done


def exact_pairs(rows: np.ndarray, left: np.ndarray, columns: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64 (n,): the products of rows of two matrices, by their numbers."""
    done = np.empty(len(left))
    for start in range(0, len(left), _CHUNK):
        part = slice(start, start + _CHUNK)
        done[part] = exact_dots(rows[left[part]], columns[right[part]])
    return done


@dataclass(frozen=True, eq=False)
class Block:
    """Vectors that are compared with others, several times.

    Attributes
    ----------
    vectors
        float32 (n, dim), of unit length.
    """

    vectors: np.ndarray

    @cached_property
    def fast(self) -> torch.Tensor:
        """The same for fast products, on the device, with rows of zeros up to a multiple of `_SHAPE`."""
        import torch

        here = backend.current()
        tensor = torch.from_numpy(np.ascontiguousarray(self.vectors)).to(here.torch_device)
        tensor = tensor.to(here.autocast_dtype() or torch.float32)
        return torch.nn.functional.pad(tensor, (0, 0, 0, _rounded(len(tensor)) - len(tensor)))

    @property
    def margin(self) -> float:
        """How far a fast product may be off, at most."""
        import torch

        return MARGIN if self.fast.dtype == torch.float32 else REDUCED_MARGIN


def products(rows: Block, columns: Block, at: slice, only: np.ndarray | None = None) -> torch.Tensor:
    """Fast products of all rows, or of some only, and a slice of the columns."""
    import torch

    first, last, _ = at.indices(len(columns.vectors))
    with torch.inference_mode():
        fast, count = rows.fast, len(rows.vectors)
        if only is not None:
            count = len(only)
            padded = np.zeros(_rounded(count), np.int64)
            padded[:count] = only
            fast = fast[torch.from_numpy(padded).to(fast.device)]
        whole = fast @ columns.fast[first : first + _rounded(last - first)].T
        return whole[:count, : last - first]


def _rounded(rows: int) -> int:
    return -(-rows // _SHAPE) * _SHAPE


def near(found: torch.Tensor, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of fast products that are at least so large."""
    import torch

    with torch.inference_mode():
        hits = torch.nonzero(found >= least).cpu()
        return hits[:, 0].numpy(), hits[:, 1].numpy()


def near_in_parts(found: torch.Tensor, least: float, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same where they are few, mostly; some rows at a time, with so many products."""
    import torch

    with torch.inference_mode():
        rows = torch.nonzero(found.amax(1) >= least).flatten()
        step = max(1, most // found.shape[1])
        for part in rows.split(step) if len(rows) else ():
            hits = torch.nonzero(found[part] >= least).cpu()
            yield part.cpu()[hits[:, 0]].numpy(), hits[:, 1].numpy()


def plain_products(rows: np.ndarray, columns: torch.Tensor) -> np.ndarray:
    """float32 products, with what is on the device."""
    import torch

    with torch.inference_mode():
        return (torch.from_numpy(rows).to(columns.device) @ columns.T).cpu().numpy()


def on_device(matrix: np.ndarray) -> torch.Tensor:
    """A matrix on this process's device."""
    import torch

    return torch.from_numpy(np.array(matrix, np.float32)).to(backend.current().torch_device)
