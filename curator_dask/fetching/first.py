"""A fetch that is the first of many steps: as a recipe gives it, with a look ahead before hours go into images."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curator_dask.arguments import check_names, make_of, names_of
from curator_dask.cluster.setup import OpenWorkers
from curator_dask.crawls.first import SUFFIX, FirstLinks
from curator_dask.crawls.summary import LinksSummary
from curator_dask.errors import ConfigError, OutputError, ShardError
from curator_dask.fetching.addresses import REFUSED
from curator_dask.fetching.options import FetchOptions
from curator_dask.fetching.running import fetch_table
from curator_dask.fetching.summary import FetchSummary
from curator_dask.storage import Options

_OWN = ("table", "links", "min_good", "storage_options")
# Of a table of links.
_COLUMNS = {"url_column": "url", "caption_column": "caption"}


@dataclass(frozen=True)
class FirstFetch:
    """What is fetched before all else.

    Attributes
    ----------
    table
        Of URLs; None where one of links is made first.
    options
        How they are fetched.
    min_good
        Share of its rows that must have an image, for what follows to be done.
    storage_options
        For fsspec, of the table.
    links
        The crawl that a table is made of; None: there is one.
    """

    table: str | None
    options: FetchOptions
    min_good: float = 0.0
    storage_options: Options = field(default=None, repr=False)
    links: FirstLinks | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> FirstFetch:
        """As a recipe says it: ``table`` or ``links``, and arguments of `FetchOptions`.

        Raises
        ------
        ConfigError
            It lacks both, or has other arguments.
        """
        if not isinstance(given, Mapping):
            raise ConfigError(f"fetch: expected {{table: FILE, caption_column: NAME}}, found {given!r}")
        taken = ("append",)
        check_names("fetch", given, [*_OWN, *(name for name in names_of(FetchOptions) if name not in taken)])
        links = None if given.get("links") is None else FirstLinks.of(given["links"])
        table = given.get("table")
        if links is not None and (table is not None or given.get("storage_options") is not None):
            raise ConfigError("fetch: links make a table: leave out table and its storage_options")
        if links is None and (not isinstance(table, str) or not table):
            raise ConfigError(
                f"fetch: expected a table of URLs, as table: urls.parquet, found {table!r}; or, to make one of a crawl,"
                " links: {crawl: wat.paths.gz}"
            )
        share = given.get("min_good", 0.0)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ConfigError(f"fetch: min_good={share!r}: expected a share from 0 to 1")
        settings = {name: value for name, value in given.items() if name not in _OWN}
        settings = settings if links is None else {**_COLUMNS, **settings}
        options = make_of("fetch", FetchOptions, settings)
        return cls(table, options, float(share), given.get("storage_options"), links)

    def make_table(
        self, output: str, *, append: bool, output_options: Options, workers: OpenWorkers
    ) -> LinksSummary | None:
        """Make the table of links, where the recipe asks for one, in a folder beside that of the shards.

        Raises
        ------
        ConfigError
            There are shards, and it is to be added to them.
        CuratorError
            As of `FirstLinks`.
        """
        if self.links is None:
            return None
        if append:
            raise ConfigError(
                "append: a table of links that is made anew is none that has grown. Give a new crawl another INPUT, and"
                " fetch what `join` finds to be new"
            )
        return self.links(_links_of(output), output_options, workers)

    def __call__(
        self,
        output: str,
        ahead: Callable[[Path], object],
        *,
        append: bool = False,
        output_storage_options: Options = None,
        workers: OpenWorkers = nullcontext,
    ) -> FetchSummary:
        """Fetch what is missing.

        Parameters
        ----------
        output
            Where the shards go.
        ahead
            Called before the first image is asked for, where some are missing, with a folder of one shard without
            rows, whose columns are those that the shards will have: to see whether what follows can be done.
        append
            The table has grown.
        output_storage_options, workers
            As of `fetch_images`.

        Raises
        ------
        ShardError
            A shard could not be written, or too few rows have an image.
        CuratorError
            As of `fetch_images`.
        """

        def look(schema: pa.Schema) -> None:
            with tempfile.TemporaryDirectory(prefix="curator-dask-") as folder:
                tarfile.open(Path(folder, "00000.tar"), "w").close()
                pq.write_table(schema.empty_table(), Path(folder, "00000.parquet"))
                try:
                    ahead(Path(folder))
                except OutputError as error:
                    of_others.append(error)
                    raise

        of_others: list[OutputError] = []  # what is wrong with other folders than that of the fetch
        try:
            found = fetch_table(
                _links_of(output) if self.table is None else self.table,
                output,
                replace(self.options, append=append),
                storage_options=output_storage_options if self.table is None else self.storage_options,
                output_storage_options=output_storage_options,
                workers=workers,
                ahead=look,
            )
        except OutputError as error:
            if error in of_others:
                raise
            raise OutputError(f"fetch: {error}. (Of a recipe that is `fetch: {{overwrite: true}}`)") from None
        if found.failed_shards:
            name, why = next(iter(found.failed_shards.items()))
            raise ShardError(
                f"{name}: could not be fetched, and nothing else was done: {why}. Mend it, and run again"
            )
        if not found.images or found.good < self.min_good:
            some = ", ".join(f"{count:,} x {reason}" for reason, count in found.reasons.most_common(3))
            also = (
                ", allow_private: true" if found.reasons[REFUSED] and not self.options.allow_private else ""
            )
            raise ShardError(
                f"fetch: {found.images:,} of {found.rows:,} rows have an image ({found.good:.1%}, min_good is"
                f" {self.min_good:.1%}), and nothing else was done: {some}. Run again with `fetch: {{retry_failed:"
                f" true{also}}}`, or with a smaller min_good"
            )
        return found


def _links_of(output: str) -> str:
    return f"{output.rstrip('/')}{SUFFIX}"
