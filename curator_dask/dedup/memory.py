"""How much is held in memory at a time: by it blocks are smaller or larger, and what is found is the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask.utils import format_bytes, parse_bytes
from distributed.system import MEMORY_LIMIT

from curator_dask.errors import ConfigError

if TYPE_CHECKING:
    from distributed import Client

#: Rows of the two sides of a block of products where pairs are looked for.
QUERIES, COLUMNS = 512, 4096
#: Rows of a sample that are compared with all.
SAMPLE = 1024
_LEAST = 64  # rows of a block
# Bytes: of a vector as float32 and in half of that; of a product; of a pair while some are sorted, and one that may be.
_VECTOR, _PRODUCT, _PAIR = 6, 5, 100
_CROWD = 52 << 20  # the best of the betters of a block's rows, each of which has very many


@dataclass(frozen=True)
class Memory:
    """What a task, or the client, may hold of vectors, products and pairs.

    Attributes
    ----------
    limit
        Bytes, besides what Python, its libraries and the keys of rows take. None: blocks are as large as they get.
    """

    limit: int | None = None

    def scanned(self, dim: int) -> int:
        """Rows of a file that are read at a time."""
        return self._rows(0, 24 * dim, 2048)

    def sorted_rows(self, dim: int) -> int:
        """Vectors that are put in order at a time."""
        return self._rows(0, 8 * dim, 1 << 15)

    def holds(self, size: int) -> bool:
        """Whether so many bytes of a sample may be held, beside what is made of them."""
        return self.limit is None or 2 * size <= self.limit

    def clustered(self, dim: int, clusters: int) -> int:
        """Rows of a sample that k-means looks at at a time."""
        return self._rows(_kmeans(dim, clusters), 24 * dim + 6 * clusters)

    def assigned(self, dim: int, clusters: int) -> int:
        """Rows whose clusters are decided at a time."""
        return self._rows(8 * dim * clusters, 12 * dim + 14 * clusters)

    def queries(self, dim: int) -> int:
        """Blocks of rows that are compared with a cluster at a time."""
        return self._share(_pairs(dim), 2, QUERIES * dim * _VECTOR, 1, 8)

    def hits(self, dim: int) -> int:
        """Products of a block that are looked at at a time, where very many say that rows are near."""
        return self._share(_pairs(dim), 4, _PAIR, 1 << 14, 1 << 21)

    def held(self, dim: int) -> int:
        """Pairs that a task holds, before they go to a file."""
        return self._share(_pairs(dim), 4, _PAIR, 1 << 12, 1 << 20)

    @property
    def joined(self) -> int:
        """Pairs of all tasks that are made groups of at a time."""
        return self._share(0, 1, _PAIR, 1 << 12, 1 << 24)

    def check(self, said: Any, dim: int, clusters: int) -> None:
        """See that it is enough.

        Raises
        ------
        ConfigError
            It is not.
        """
        needed = max(
            _kmeans(dim, clusters) + _LEAST * (24 * dim + 6 * clusters),
            _sample(dim, clusters),
            8 * dim * clusters + _LEAST * (12 * dim + 14 * clusters),
            _pairs(dim) + QUERIES * dim * _VECTOR + 2 * _PAIR * (1 << 14),
        )
        if self.limit is not None and self.limit < needed:
            raise ConfigError(
                f"memory_limit={said!r}: a task may hold {format_bytes(self.limit)}, and with vectors of {dim} and"
                f" {clusters} clusters it needs {format_bytes(needed)}. Give a larger limit, or workers with fewer"
                " threads, each of which has a task"
            )

    def _rows(self, fixed: int, each: int, most: int = COLUMNS) -> int:
        return self._share(fixed, 1, each, _LEAST, most)

    def _share(self, fixed: int, of: int, each: int, least: int, most: int) -> int:
        if self.limit is None:
            return most
        return int(min(most, max(least, (self.limit - fixed) // of // each)))


NO_LIMIT = Memory()


def _kmeans(dim: int, clusters: int) -> int:
    return 24 * dim * clusters + 4 * dim * max(8192, 2 * clusters)


def _sample(dim: int, clusters: int) -> int:
    return (
        8 * dim * clusters + SAMPLE * 4 * clusters + (SAMPLE + COLUMNS) * _VECTOR * dim + SAMPLE * COLUMNS * 8
    )


def _pairs(dim: int) -> int:
    return 2 * COLUMNS * dim * _VECTOR + QUERIES * COLUMNS * _PRODUCT + _CROWD


def parse_limit(said: Any) -> int | float | None:
    """Bytes (int), or a share of a worker's memory (float, above 0 and up to 1), from what a user gives.

    Raises
    ------
    ConfigError
        It is neither.
    """
    if said is None:
        return None
    try:
        if isinstance(said, bool) or said == "":  # of which dask makes 1
            raise ValueError
        number = float(said) if isinstance(said, int | float) or _is_number(said) else parse_bytes(said)
        if not number > 0 or number == float("inf"):
            raise ValueError
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(
            f"memory_limit={said!r}: expected bytes, such as '4GB', or a share of a worker's memory, such as 0.5"
        ) from None
    return float(number) if number <= 1 else int(number)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def share_out(limit: int | float | None, client: Client | None) -> tuple[Memory, Memory]:
    """What a task may hold, and what the client may: a worker's threads share what it has.

    Parameters
    ----------
    limit
        As `parse_limit` gives it.
    client
        Of the cluster; None: all is done in this process.
    """
    if limit is None:
        return NO_LIMIT, NO_LIMIT
    workers: list[Any] = []
    if client is not None:
        workers = list(client.sync(client.scheduler.identity, n_workers=-1)["workers"].values())
    threads = max((worker["nthreads"] for worker in workers), default=1)
    if isinstance(limit, float):
        limit = int(
            limit * min((worker["memory_limit"] or MEMORY_LIMIT for worker in workers), default=MEMORY_LIMIT)
        )
    return Memory(limit // threads), Memory(limit)
