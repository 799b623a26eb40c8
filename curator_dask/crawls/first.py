"""Links of a crawl as the first of many steps: as a recipe gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from curator_dask.arguments import check_names, make_of, names_of
from curator_dask.cluster.setup import OpenWorkers
from curator_dask.crawls.rules import LinkRules
from curator_dask.crawls.running import extract_links
from curator_dask.crawls.summary import LinksSummary
from curator_dask.errors import ConfigError, ShardError
from curator_dask.storage import Options

#: Behind the folder that images are fetched to: where the table of links is.
SUFFIX = ".links"
_OWN = ("crawl", "prefix", "first", "rows_per_file", "keep_work", "overwrite", "storage_options")


@dataclass(frozen=True)
class FirstLinks:
    """Of which crawl a table is made before all else, and how.

    Attributes
    ----------
    rules
        Which links are taken.
    given
        Other arguments of `extract_links`, ``crawl`` among them.
    """

    rules: Mapping[str, Any]
    given: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, given: Any) -> FirstLinks:
        """As a recipe says it: ``crawl``, and arguments of `extract_links`.

        Raises
        ------
        ConfigError
            It lacks a crawl, or has other arguments.
        """
        if not isinstance(given, Mapping):
            raise ConfigError(f"fetch: links: expected {{crawl: wat.paths.gz}}, found {given!r}")
        check_names("fetch: links", given, [*_OWN, *names_of(LinkRules)])
        if not isinstance(crawl := given.get("crawl"), str) or not crawl:
            raise ConfigError(f"fetch: links: expected a crawl, as crawl: wat.paths.gz, found {crawl!r}")
        rules = {name: value for name, value in given.items() if name not in _OWN}
        make_of("fetch: links", LinkRules, rules)  # says what is wrong with them
        return cls(rules, {name: value for name, value in given.items() if name in _OWN})

    def __call__(self, output: str, output_options: Options, workers: OpenWorkers) -> LinksSummary:
        """Make the table, or what of it is missing.

        Raises
        ------
        ShardError
            A file of the crawl could not be read: with it the table would be another.
        CuratorError
            As of `extract_links`.
        """
        crawl = str(self.given["crawl"])
        others = {name: value for name, value in self.given.items() if name != "crawl"}
        found = extract_links(
            crawl, output, **self.rules, **others, output_storage_options=output_options, workers=workers
        )
        unread = found.failed or (found.output.failed_shards if found.output is not None else {})
        if unread:
            name, why = next(iter(unread.items()))
            raise ShardError(
                f"{name}: {why}. Nothing was fetched, as the table would be another with it ({len(unread)} such):"
                " run again when it can be read, or take it out of the list"
            )
        return found
