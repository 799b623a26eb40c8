"""Which samples are to go: those that a list names, or those that a condition says."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from curator_dask.errors import ConfigError, DatasetError, NoColumnError, OutputError
from curator_dask.frames.columns import to_array
from curator_dask.frames.names import URL_COLUMN
from curator_dask.outputs.taken_down import kind_of, plain
from curator_dask.rows.lookup import Lookup, key_texts, with_shards
from curator_dask.rows.near_lookup import NearLookup
from curator_dask.rows.user_tables import UserTable
from curator_dask.rows.where import Where
from curator_dask.storage import Options
from curator_dask.tables.columns import MOST_BITS
from curator_dask.tables.held import check_memory, near_lookup
from curator_dask.words import none_of_these

#: By what rows are found unless something else is said: what tells samples of a shard apart.
KEY = "key"


class Asked:
    """Samples that are to go.

    Parameters
    ----------
    table
        A list, as `curator_dask.tables.TableColumns` takes tables; None: there is none.
    on
        Column of the rows, and behind ``=`` that of the list.
    within
        Of perceptual hashes: in how many bits they may differ; None: values must be the same.
    where
        A condition on rows, None: none.
    options
        For fsspec, where the table is a URL.

    Raises
    ------
    ConfigError, DatasetError
        This is no such list or condition.
    """

    def __init__(
        self,
        table: str | os.PathLike[str] | None,
        on: str,
        within: int | None = None,
        where: str | None = None,
        options: Options = None,
    ) -> None:
        own, equals, other = on.partition("=") if isinstance(on, str) else ("", "", "")
        if not own or (equals and not other):
            raise ConfigError(
                f"on={on!r}: expected a column's name, as 'url', or those of the rows and of the list, as 'url=link'"
            )
        if within is not None and (
            not isinstance(within, int) or isinstance(within, bool) or not 0 <= within <= MOST_BITS
        ):
            raise ConfigError(f"within={within!r}: expected a number of bits, 0 to {MOST_BITS}")
        if within is not None and table is None:
            raise ConfigError(
                f"within={within}: is of the hashes of a list, and none is given (listed, --list)"
            )
        self.on, self.within = own, within
        self.where = None if where is None else Where(where)
        self.lookup: Lookup | NearLookup | None = None
        self.by_shard = False
        #: How many files could not be asked, as they have no such column.
        self.unanswered = 0
        self._fault: Exception | None = None
        self._answered = False
        if table is not None:
            self._open(UserTable.find(table, other or own, options))
        #: bool (values,): which of the list's values a row has.
        self.found = np.zeros(0 if self.lookup is None else len(self.lookup.firsts), bool)

    def _open(self, table: UserTable) -> None:
        with table.steady():
            self.by_shard = (
                self.on == KEY and self.within is None and not table.is_list and bool(table.shards())
            )
            table = replace(table, by_shard=self.by_shard)
            check_memory(table, [])
            if self.within is not None:
                self.lookup = near_lookup(table, self.within)
            else:
                texts, is_number = table.keys()
                self.lookup = Lookup(self._as_known(texts), is_number)
        if not self.values:
            raise DatasetError(
                f"{table.path}: has no values in the column {table.key!r}: nothing would be removed"
            )

    @property
    def values(self) -> int:
        """How many different values the list has."""
        if self.lookup is None:
            return 0
        firsts = self.lookup.firsts
        return int(np.count_nonzero(firsts == np.arange(len(firsts))))

    def columns(self, names: Sequence[str]) -> list[str]:
        """Those of some columns that have to be read."""
        found = [name for name in (self.on, *([URL_COLUMN] if self.by_shard else [])) if name in names]
        return [*found, *(self.where.columns(names) if self.where is not None else ())]

    def mask(self, table: pa.Table, id_col: str, asks_keys: bool, path: str) -> np.ndarray:
        """Which rows are asked for, bool (rows,); none where they lack the column.

        Parameters
        ----------
        table
            The rows.
        id_col
            Column of their keys.
        asks_keys
            Their keys are those of the list.
        path
            Of their file, for errors.
        """
        found = np.zeros(len(table), bool)
        if self.lookup is not None and (asks_keys or self.on != KEY):
            name = id_col if self.on == KEY and KEY not in table.column_names else self.on
            if name not in table.column_names:
                self._lacks(OutputError(f"{path}: {none_of_these(self.on, table.column_names)} (--on)"))
            else:
                self._answered = True
                found |= self._listed(table, name, path)
        if self.where is not None and len(table):
            try:
                passes = self.where.passes(table) == 1
            except NoColumnError as error:
                self._lacks(NoColumnError(f"{path}: {error}"))
            else:
                self._answered = True
                found |= passes
        return found

    def _lacks(self, fault: Exception) -> None:
        self.unanswered += 1
        self._fault = self._fault or fault

    def _listed(self, table: pa.Table, name: str, path: str) -> np.ndarray:
        column = table.column(name)
        try:
            if isinstance(self.lookup, NearLookup):
                rows, _ = self.lookup.find(column)
            else:
                assert self.lookup is not None
                texts, is_number = key_texts(column)
                texts = self._as_known(texts)
                if self.by_shard:
                    texts = with_shards(texts, to_array(table.column(URL_COLUMN)))
                rows = self.lookup.find_texts(texts, is_number)
        except ValueError as error:
            raise OutputError(f"{path}: column {name!r}: {error}. Give another column (--on)") from None
        self.found[rows[rows >= 0]] = True
        return np.asarray(rows >= 0)

    def _as_known(self, texts: pa.Array) -> pa.Array:
        """Values as rows are known by them later: else a list's would be noted as what no row ever is."""
        return texts if self.on == KEY else plain(kind_of(self.on), texts)

    def check(self) -> None:
        """Raise what was wrong where rows of no file could be asked."""
        if self._fault is not None and not self._answered:
            raise self._fault

    def texts(self, which: Collection[bool] | np.ndarray | None = None) -> list[str]:
        """The list's different values as text, or of these `which`, by place in the list."""
        if self.lookup is None:
            return []
        firsts = self.lookup.firsts
        own = firsts == np.arange(len(firsts))
        if which is not None:
            own &= np.asarray(which, bool)
        values = self.lookup.values if isinstance(self.lookup, NearLookup) else self.lookup.texts
        places = pa.array(np.flatnonzero(own))
        return [str(each).partition("\0")[0] for each in to_array(values).take(places).to_pylist()]

    @property
    def notes_all(self) -> bool:
        """Whether all values of the list are noted, those that no row has now, too; keys say nothing of other rows."""
        return self.lookup is not None and self.within is None and self.on != KEY
