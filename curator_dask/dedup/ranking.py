"""`RankingStrategy`: which item of a cluster comes before which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ConfigError

#: Distances from an item's centroid, columns of the files of clusters.
COSINE_DISTANCE = "cosine_dist_to_cent"
L2_DISTANCE = "l2_dist_to_cent"


@dataclass(frozen=True, init=False)
class RankingStrategy:
    """The order of the items of a cluster: of two that are near, the one that comes first stays.

    Parameters
    ----------
    metadata_cols
        Columns of the files of clusters, the first one first. Null comes last.
    ascending
        Whether small values come first; one for all, or one for each.
    strategy
        ``"sort"``: by the columns. ``"random"``: by chance.
    random_seed
        Of that.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    metadata_cols: tuple[str, ...]
    ascending: tuple[bool, ...]
    strategy: str
    random_seed: int

    def __init__(
        self,
        metadata_cols: Sequence[str],
        ascending: Sequence[bool] | bool = True,
        strategy: str = "sort",
        random_seed: int = 42,
    ) -> None:
        columns = tuple(metadata_cols)
        ways = (ascending,) * len(columns) if isinstance(ascending, bool) else tuple(ascending)
        if strategy not in ("sort", "random"):
            raise ConfigError(f"strategy={strategy!r}: expected 'sort' or 'random'")
        if isinstance(metadata_cols, str) or (strategy == "sort" and not columns):
            raise ConfigError(f"metadata_cols={metadata_cols!r}: expected a list of columns")
        if len(ways) != len(columns):
            raise ConfigError(f"ascending={ascending!r}: expected one for each of {list(columns)}")
        given: dict[str, Any] = {
            "metadata_cols": columns,
            "ascending": ways,
            "strategy": strategy,
            "random_seed": random_seed,
        }
        for name, value in given.items():
            object.__setattr__(self, name, value)

    @classmethod
    def metadata_based(
        cls, metadata_cols: Sequence[str], ascending: Sequence[bool] | bool = True, random_seed: int = 42
    ) -> RankingStrategy:
        """By columns."""
        return cls(metadata_cols, ascending, random_seed=random_seed)

    @classmethod
    def random(cls, random_seed: int = 42) -> RankingStrategy:
        """By chance."""
        return cls((), strategy="random", random_seed=random_seed)

    @classmethod
    def of(
        cls, which_to_keep: str, id_col: str, sim_metric: str = "cosine", seed: int = 42
    ) -> RankingStrategy:
        """By the distance from the centroid, then by the id; or by chance.

        Parameters
        ----------
        which_to_keep
            ``"hard"``: the farthest first, ``"easy"``: the nearest, ``"random"``.
        id_col
            Column of the ids.
        sim_metric
            ``"cosine"`` or ``"l2"``: which distance.
        seed
            Of ``"random"``.

        Raises
        ------
        ConfigError
            None of these.
        """
        if which_to_keep not in ("hard", "easy", "random"):
            raise ConfigError(f"which_to_keep={which_to_keep!r}: expected 'hard', 'easy' or 'random'")
        distances = {"cosine": COSINE_DISTANCE, "l2": L2_DISTANCE}
        if sim_metric not in distances:
            raise ConfigError(f"sim_metric={sim_metric!r}: expected 'cosine' or 'l2'")
        if which_to_keep == "random":
            return cls.random(seed)
        return cls((distances[sim_metric], id_col), which_to_keep == "easy")

    def order(self, rows: pa.Table, cluster: int) -> np.ndarray:
        """int64 (rows,): the rows of a cluster, the first one first. Ties stay in the order of the rows."""
        if self.strategy == "random":
            return np.random.default_rng([self.random_seed, cluster]).permutation(len(rows))
        keys = [
            (str(number), "ascending" if up else "descending") for number, up in enumerate(self.ascending)
        ]
        table = pa.table([rows.column(name) for name in self.metadata_cols], [name for name, _ in keys])
        table = table.append_column("at", pa.array(np.arange(len(rows))))
        found = pc.sort_indices(table, sort_keys=[*keys, ("at", "ascending")])
        return np.asarray(found).astype(np.int64)
