"""What an export is asked to do, checked when it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curator_dask.errors import ConfigError
from curator_dask.rows.where import Where


@dataclass(frozen=True)
class ExportOptions:
    """As `ImageTextPairDataset.to_webdataset` explains them.

    Raises
    ------
    ConfigError
        They cannot be carried out.
    """

    filter_column: str | None = None
    samples_per_shard: int = 10_000
    max_shards: int = 5
    old_id_col: str | None = None
    where: str | None = None
    columns: Sequence[str] | None = None
    keys: str | None = None
    layout: str | None = None
    shard_bytes: int | None = None
    shuffle: int | None = None
    metadata: str | None = "parquet"
    index: bool = True
    overwrite: bool = False
    without: str | None = None

    def __post_init__(self) -> None:
        for name, lowest in (
            ("samples_per_shard", 1),
            ("max_shards", 1),
            ("shard_bytes", 1),
            ("shuffle", 0),
        ):
            _check_number(name, getattr(self, name), lowest)
        _check_one_of("keys", self.keys, ("original", "sequential", None))
        _check_one_of("layout", self.layout, ("original", "portable", None))
        _check_one_of("metadata", self.metadata, ("parquet", "json", None))
        if self.where is not None:
            Where(self.where)
        if isinstance(self.columns, str):
            raise ConfigError(f"columns={self.columns!r}: expected a list of names")
        if self.old_id_col is not None and not self.sequential:
            raise ConfigError(
                f"old_id_col={self.old_id_col!r}: keys='original' leaves each sample its key: give keys='sequential'"
            )

    @property
    def sequential(self) -> bool:
        """Whether keys are made anew."""
        return self.keys == "sequential" if self.keys is not None else self.old_id_col is not None

    @property
    def portable(self) -> bool:
        """Whether names are made such that all readers take them alike."""
        return self.layout == "portable" if self.layout is not None else self.sequential


def _check_number(name: str, value: Any, lowest: int) -> None:
    wrong = isinstance(value, bool) or not isinstance(value, int) or value < lowest
    may_lack = name not in ("samples_per_shard", "max_shards")
    if wrong and not (value is None and may_lack):
        raise ConfigError(f"{name}={value!r}: expected a whole number of at least {lowest}")


def _check_one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")
