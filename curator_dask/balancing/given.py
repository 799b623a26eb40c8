"""A balance as a recipe gives it: over concepts in captions, or over clusters of vectors."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from curator_dask.arguments import check_names
from curator_dask.balancing.choosing import FAR, NEAR, RANDOM
from curator_dask.balancing.clusters import (
    COLUMNS,
    ClusterBalanceSummary,
    balance_clusters,
    check_cluster_balance,
    how_of,
)
from curator_dask.cluster.setup import OpenWorkers
from curator_dask.errors import ConfigError
from curator_dask.frames.names import CAPTION_COLUMN
from curator_dask.image.classifiers.levels import read_levels
from curator_dask.models.heads import digest_of
from curator_dask.storage import Options
from curator_dask.text.balance import BalanceSummary, balance_output
from curator_dask.text.concepts import CONCEPT_COLUMN, ConceptList
from curator_dask.text.drawing import COLUMNS as CONCEPT_COLUMNS
from curator_dask.text.given import BALANCE, check_balance

#: Arguments of `balance_clusters` that a recipe gives.
CLUSTERS = (
    *("clusters", "keep", "by", "order", "temperature", "neighbours"),
    *("seed", "column", "prefix", "check"),
)


def check_any_balance(balance: Any) -> None:
    """Raise ConfigError where the arguments of a balance are others than it takes, or lack one."""
    if not isinstance(balance, Mapping) or "clusters" not in balance:
        check_balance(balance)
        return
    check_names("balance", balance, CLUSTERS)
    if balance.get("keep") is None:
        raise ConfigError(
            "balance: expected clusters, a file, and keep, a share or a number of rows; keep is not given"
        )
    texts = {name: balance[name] for name in ("clusters", "column", "prefix") if name in balance}
    if wrong := [name for name, value in texts.items() if not isinstance(value, str | Path)]:
        raise ConfigError(f"balance: {wrong[0]}={texts[wrong[0]]!r}: expected text")
    if not isinstance(balance.get("check", True), bool):
        raise ConfigError(f"balance: check={balance['check']!r}: expected true or false")
    names = ("keep", "by", "order", "temperature", "neighbours", "seed")
    try:
        check_cluster_balance(**{name: balance[name] for name in names if name in balance})
    except ConfigError as error:
        raise ConfigError(f"balance: {error}") from None


def by_clusters(balance: Mapping[str, Any] | None) -> bool:
    """Whether it is a balance over clusters."""
    return balance is not None and "clusters" in balance


def columns_of(balance: Mapping[str, Any] | None) -> list[str]:
    """The columns that a balance adds."""
    names = COLUMNS if by_clusters(balance) else CONCEPT_COLUMNS
    return [] if balance is None else [balance.get("prefix", "") + name for name in names]


def needed_column(balance: Mapping[str, Any]) -> str | None:
    """The column that rows must have: of captions, or by which the rows of a cluster are kept."""
    if not by_clusters(balance):
        found: str = balance.get("text_column", CAPTION_COLUMN)
        return found
    order: str | None = balance.get("order")
    return None if order in (None, FAR, NEAR, RANDOM) else order


def identity_of(balance: Mapping[str, Any] | None) -> dict[str, Any]:
    """What decides which rows are kept, files by their content.

    Raises
    ------
    DatasetError, WeightsError
        The file of concepts, or of centroids, cannot be read.
    """
    if balance is None:
        return {}
    by, names = (balance_clusters, CLUSTERS) if by_clusters(balance) else (balance_output, tuple(BALANCE))
    defaults = {name: each.default for name, each in signature(by).parameters.items()}
    said = {name: balance.get(name, defaults[name]) for name in names}
    if by_clusters(balance):
        levels = len(read_levels(balance["clusters"]))
        said["by"], said["order"] = how_of(said["by"], said["order"], levels)
        said["clusters"] = digest_of(balance["clusters"])
    else:
        column = balance.get("concept_column", CONCEPT_COLUMN)
        said["concepts"] = ConceptList.read(balance["concepts"], column).digest
    return said


def balance_by(
    path: str, balance: Mapping[str, Any], overwrite: bool, workers: OpenWorkers, options: Options = None
) -> BalanceSummary | ClusterBalanceSummary:
    """Balance an output as a recipe says, in its place; `options` are for fsspec."""
    by = balance_clusters if by_clusters(balance) else balance_output
    return by(path, **balance, overwrite=overwrite, storage_options=options, workers=workers)
