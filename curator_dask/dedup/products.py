"""Which vectors of two blocks are near one another: found by fast products, decided by exact ones.

A fast product is float32, or bf16 or fp16 where these are native. All that may pass by it is decided by the same sum in
float64, a pair at a time: so a decision depends on the two vectors alone, and not on blocks, threads or devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from curator_dask import backend
from curator_dask.frames.exact import exact_dots as exact_dots

if TYPE_CHECKING:
    import torch

#: How far the float32 product of unit vectors may be off, or the sum of a fast one.
MARGIN = 1e-3
_SUM = 2**-9  # of bf16, below 1
_CUT = 2**-8  # each value of bf16, of itself
PAIR_COST = 512  #: Products that are made in the time in which a single pair is decided.
_CHUNK = 128  # rows whose products fit into a core's cache
_SHAPE = 128  # oneDNN makes code for each shape of a product in bf16, which takes it 6 ms
_WIDE = (256, 512, 768, 1024, 1536, 2048, 3072, 4096)  # columns of such shapes


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
    ready
        What `fast` is, where that is known.
    """

    vectors: np.ndarray
    ready: torch.Tensor | None = None

    @cached_property
    def fast(self) -> torch.Tensor:
        """The same for fast products, on the device, with other rows behind them."""
        import torch

        if self.ready is not None:
            return self.ready
        here, (rows, dim) = backend.current(), self.vectors.shape
        kind = here.autocast_dtype() or torch.float32
        fast = torch.empty((_wide(rows), dim), dtype=kind, device=here.torch_device)
        fast[:rows].copy_(torch.from_numpy(np.ascontiguousarray(self.vectors)))
        fast[rows:] = 0
        return fast

    def part(self, start: int, stop: int) -> Block:
        """Some of its rows, without a copy where there are enough behind them."""
        end = start + _rounded(stop - start)
        return Block(self.vectors[start:stop], self.fast[start:end] if end <= len(self.fast) else None)

    @cached_property
    def off(self) -> float:
        """How far `fast` is from the vectors, at most: of bf16 it may be more than twice what it is of most."""
        import torch

        if self.fast.dtype == torch.float32:
            return 0.0 if _whole() else _CUT
        with torch.inference_mode():
            away = self.fast[: len(self.vectors)].float().sub_(self._here())
            return float(torch.linalg.vector_norm(away, dim=1).max()) if len(away) else 0.0

    @cached_property
    def plain(self) -> torch.Tensor:
        """float32, on the device."""
        return self._here().float()

    def _here(self) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(self.vectors)).to(backend.current().torch_device)


def margin_of(rows: Block, columns: Block) -> float:
    """How far the fast product of two of their vectors may be off, at most.

    By the inequality of Cauchy and Schwarz: a bound for all vectors would be 2**-7 for bf16 alone, where each of their
    values is rounded to the same side.
    """
    import torch

    rounded = 0.0 if rows.fast.dtype == torch.float32 else _SUM
    return MARGIN + rounded + rows.off + columns.off * (1 + rows.off)


def products(rows: Block, columns: Block, at: slice, only: np.ndarray | None = None) -> torch.Tensor:
    """Fast products of all rows, or of some only, and a slice of the columns."""
    import torch

    first, last, _ = at.indices(len(columns.vectors))
    with torch.inference_mode():
        fast, count = rows.fast, len(rows.vectors)
        if (
            fast.is_cuda
        ):  # else sums of parts may be rounded once more each, which the margin knows nothing of
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        if only is not None:
            count = len(only)
            padded = np.zeros(_rounded(count), np.int64)
            padded[:count] = only
            fast = fast[torch.from_numpy(padded).to(fast.device)]
        whole = fast[: _rounded(count)] @ columns.fast[first : first + _wide(last - first)].T
        return whole[:count, : last - first]


def are_near(
    rows: np.ndarray, left: np.ndarray, columns: Block, right: np.ndarray, least: float
) -> np.ndarray:
    """Which pairs have a product that is at least so large: as by `exact_pairs`, which few of many are asked for.

    Parameters
    ----------
    rows
        float32 (n, dim), of unit length.
    left
        Of these, a pair's; they rise.
    columns, right
        The others, and a pair's of them.
    least
        That a product is.

    Returns
    -------
    numpy.ndarray
        bool (pairs,).
    """
    good = np.zeros(len(left), bool)
    open_ = np.arange(len(left))
    if len(left) * PAIR_COST > (size := len(rows) * (int(right.max(initial=-1)) + 1)) and size:
        found = plain_products(rows, columns.plain[: int(right.max()) + 1])[left, right]
        # An error of 2**-24 at each of so many sums and products, twice over (Higham 2002, section 3.1).
        margin = rows.shape[1] * 2**-23 if _whole() else 3 * _CUT
        good = found >= least + margin
        open_ = np.flatnonzero(np.abs(found - least) <= margin)
    good[open_] = exact_pairs(rows, left[open_], columns.vectors, right[open_]) >= least
    return good


def _whole() -> bool:
    """Whether float32 products are made of all bits, as they are unless somebody's model has asked torch otherwise."""
    import torch

    return torch.get_float32_matmul_precision() == "highest"


def _rounded(rows: int) -> int:
    return -(-rows // _SHAPE) * _SHAPE


def _wide(rows: int) -> int:
    """The same where there may be thousands: few shapes are worth more than a few products."""
    return next((step for step in _WIDE if step >= rows), _rounded(rows))


def near(found: torch.Tensor, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of fast products that are at least so large."""
    import torch

    with torch.inference_mode():
        if found.device.type == "cpu" and found.dtype == torch.bfloat16 and least > 0:
            good = _bits(found) >= _bits_of(least)
            return places_of(good)
        # Most rows have none: in float32 their largest are found in an eighth of the time that all comparisons take.
        rows = torch.nonzero(found.amax(1) >= least).flatten()
        if not len(rows):
            empty = np.zeros(0, np.int64)
            return empty, empty
        hits = torch.nonzero(found[rows] >= least).cpu()
        return rows.cpu()[hits[:, 0]].numpy(), hits[:, 1].numpy()


def near_if_few(found: torch.Tensor, least: float, most: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The same; None where there are more than so many."""
    import torch

    with torch.inference_mode():
        if found.device.type == "cpu" and found.dtype == torch.bfloat16 and least > 0:
            good = _bits(found) >= _bits_of(least)
            return places_of(good) if np.count_nonzero(good) <= most else None
        rows = torch.nonzero(found.amax(1) >= least).flatten()
        many = len(rows) > most or int((found[rows] >= least).sum()) > most
    return None if many else near(found, least)


def near_in_parts(found: torch.Tensor, least: float, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same where they may be very many: some rows at a time, with so many products."""
    step = max(1, most // max(1, found.shape[1]))
    for start in range(0, len(found), step):
        rows, columns = near(found[start : start + step], least)
        yield rows + start, columns


def largest(found: torch.Tensor) -> torch.Tensor:
    """float32 (rows,): the largest of each row's fast products; of rows that have none above 0 any of theirs."""
    import torch

    if found.device.type == "cpu" and found.dtype == torch.bfloat16:
        return found.view(torch.int16).amax(1).view(torch.bfloat16).float()
    return found.amax(1).float()


def _bits(found: torch.Tensor) -> np.ndarray:
    """int16: those of bf16. Above 0 they are in the order of the numbers, which torch compares 20 times slower."""
    import torch

    bits: np.ndarray = found.view(torch.int16).numpy()
    return bits


@lru_cache(maxsize=8)
def _bits_of(least: float) -> int:
    """Of the first bf16 above 0 that torch takes to be at least so large."""
    import torch

    numbers = torch.arange(0x7F80, dtype=torch.int16).view(torch.bfloat16)
    return int((numbers < least).sum())


def places_of(good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`numpy.nonzero` of a matrix in which a few are true."""
    flat = np.ascontiguousarray(good).reshape(-1)
    eights = np.flatnonzero(flat[: len(flat) // 8 * 8].view(np.uint64))
    at = (eights[:, None] * 8 + np.arange(8)).reshape(-1)
    tail = np.arange(len(flat) // 8 * 8, len(flat))
    at = np.concatenate([at[flat[at]], tail[flat[tail]]])
    rows, columns = np.divmod(at, max(1, good.shape[1]))
    return rows, columns


def plain_products(rows: np.ndarray, columns: torch.Tensor) -> np.ndarray:
    """float32 products, with what is on the device."""
    import torch

    with torch.inference_mode():
        return (torch.from_numpy(rows).to(columns.device) @ columns.T).cpu().numpy()


def on_device(matrix: np.ndarray) -> torch.Tensor:
    """A matrix on this process's device."""
    import torch

    return torch.from_numpy(np.array(matrix, np.float32)).to(backend.current().torch_device)
