"""From the rows that are shown to the text of their page."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2

from curator_dask import __version__


@dataclass(frozen=True)
class Labels:
    """What rows are labelled with.

    Attributes
    ----------
    name
        Column of the labels.
    classes
        Their names, in the order of their keys.
    values
        What stands for each in the table.
    heads
        What is fitted: name of the head, and the value that it tells from all others, or None where `fit` knows.
    """

    name: str
    classes: tuple[str, ...]
    values: tuple[str, ...]
    heads: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Page:
    """What a page shows.

    Attributes
    ----------
    output
        Path or URL of the rows.
    labels
        What they are labelled with.
    earlier
        Tables of labels that were there.
    column
        Of the vectors, if it is not the usual one.
    replaces
        Whether the output has scores of such heads.
    id_col
        Column of the keys.
    keys, urls, captions, pictures
        Of each row; pictures as data URIs.
    kinds, kind
        Why rows are shown, in words, and which of these each is.
    told
        How they were chosen, line by line.
    """

    output: str
    labels: Labels
    earlier: tuple[str, ...]
    column: str | None
    replaces: bool
    id_col: str
    keys: Sequence[str]
    urls: Sequence[str | None]
    captions: Sequence[str | None]
    pictures: Sequence[str]
    kinds: Sequence[str]
    kind: Sequence[int]
    told: Sequence[str]

    @property
    def name(self) -> str:
        """Column of the labels."""
        return self.labels.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.labels.classes

    @property
    def table(self) -> str:
        """Name of the file that the page saves: another one than those of before."""
        return f"{self.name}-{len(self.earlier) + 1}.csv" if self.earlier else f"{self.name}.csv"

    @property
    def fits(self) -> list[str]:
        """Commands that make heads of the labels."""
        return [
            _command(
                "fit",
                self.output,
                f"{head}.safetensors",
                *self._tables,
                *("--label", self.name),
                *(() if positive is None else ("--positive", positive)),
                *self._vectors,
                *(("--overwrite",) if self.replaces else ()),
            )
            for head, positive in self.labels.heads
        ]

    @property
    def score(self) -> str:
        """Command that scores all images with them."""
        heads = [word for head, _ in self.labels.heads for word in ("--head", f"{head}={head}.safetensors")]
        return _command(
            "score", self.output, *heads, *self._vectors, *(("--overwrite",) if self.replaces else ())
        )

    @property
    def again(self) -> str:
        """Command that makes the next page."""
        classes = ",".join(self.classes)
        by = ",".join(head for head, _ in self.labels.heads)
        page = f"{self.name}-{len(self.earlier) + 2}.html"
        given = () if classes == "yes,no" else ("--classes", classes)
        return _command(
            "label", self.output, page, "--name", self.name, *given, "--by", by, *self._tables, *self._vectors
        )

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script works with; JSON-able."""
        shards = {url: number for number, url in enumerate(dict.fromkeys(self.urls))}
        found = {
            "name": self.name,
            "classes": self.classes,
            "values": self.labels.values,
            "table": self.table,
            "idCol": self.id_col,
            "keys": self.keys,
            "shards": [url or "" for url in shards] if any(shards) else [],
            "shard": [shards[url] for url in self.urls],
            "kinds": self.kinds,
            "kind": self.kind,
        }
        # Labels are kept under it: of the same rows and classes they are there again, also when a page was made anew.
        said = json.dumps([self.output, found], sort_keys=True)
        digest = hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        return {"id": digest, **found, "captions": self.captions, "pictures": self.pictures}

    @property
    def _tables(self) -> list[str]:
        return [word for table in (*self.earlier, self.table) for word in ("--labels", table)]

    @property
    def _vectors(self) -> tuple[str, ...]:
        return () if self.column is None else ("--column", self.column)


def render(page: Page) -> str:
    """The page as HTML. What comes from rows is escaped by the template, or is JSON that a script shows as text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_read("labelling", "page.html")).render(
        page=page,
        style=_read("report", "page.css") + _read("labelling", "page.css"),
        script=_read("report", "common.js") + _read("labelling", "page.js"),
        version=__version__,
    )


def _command(*words: str) -> str:
    return shlex.join(["curator-dask", *words])


def _read(folder: str, name: str) -> str:
    return files(f"curator_dask.{folder}").joinpath(name).read_text(encoding="utf-8")
