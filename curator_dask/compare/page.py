"""The page of a comparison: its tables, histograms laid over each other, and pictures of what one output has alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from curator_dask import __version__
from curator_dask.compare.columns import BARS
from curator_dask.compare.comparison import Comparison
from curator_dask.compare.neighbours import most_own, radii
from curator_dask.compare.reading import Drawn
from curator_dask.compare.telling import distance
from curator_dask.outputs.given import names_in
from curator_dask.outputs.nearest import VectorFiles
from curator_dask.outputs.placing import put
from curator_dask.report.pictures import Pictures

#: Pictures of each output, and histograms, at most; bytes of the pictures.
PICTURES, NUMBERS = 24, 40
_ROOM = 8_000_000


@dataclass(frozen=True)
class Tile:
    """A picture of a row: its key, its picture or why there is none, and how many times nearer its own rows are."""

    key: str
    picture: str
    times: str


def write_page(
    path: Path,
    found: Comparison,
    draws: Sequence[Sequence[Drawn]],
    sides: Sequence[VectorFiles],
    k: int,
) -> None:
    """Write one HTML file, which needs no network and no other file.

    Parameters
    ----------
    path
        Of the page.
    found
        What it shows.
    draws, sides
        The samples of A and of B, and the files that they are of.
    k
        By which neighbour rows are told that one output has alone.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    numbers = [
        {**asdict(each), "top": max(*each.bars[2], *each.bars[3]), "told": distance(each)}
        for each in found.columns.both
        if each.bars is not None
    ]
    own = []
    if found.neighbours is not None:
        vectors = [np.concatenate([each.vectors for each in both]) for both in draws]
        places = [np.concatenate([each.places for each in both]) for both in draws]
        for one, name, other in ((0, "A", "B"), (1, "B", "A")):
            some = most_own(vectors[one], radii(vectors[one], k), vectors[1 - one], k, PICTURES)
            own.append((name, other, _tiles(sides[one], places[one], some)))
    template = environment.from_string(_read("curator_dask.compare", "page.html"))
    text = template.render(
        found=found,
        text=str(found),
        numbers=numbers[:NUMBERS],
        bars=BARS,
        own=own,
        style=_read("curator_dask.report", "page.css"),
        version=__version__,
    )
    put(str(path.absolute()), text.encode("utf-8", "replace"), None)


def _tiles(files_of: VectorFiles, places: np.ndarray, some: Sequence[tuple[int, float]]) -> list[Tile]:
    paths, named = list(files_of.records), []
    known: dict[int, Any] = {}
    for at, ratio in some:
        file, row = places[at].tolist()
        if file not in known:
            known[file] = names_in(paths[file], files_of.id_col(paths[file]), files_of.options)
        named.append((known[file].keys[row], known[file].urls[row], ratio))
    pictures = Pictures()
    for key, url, _ in named:
        pictures.want(key, url)
    pictures.make(_ROOM, files_of.options)
    tiles = []
    for key, url, ratio in named:
        number = pictures.places.get((url, str(key)), -1)
        picture = pictures.made[number] if number >= 0 else ""
        tiles.append(Tile(str(key), picture, f"{1 / ratio:.1f}" if ratio > 1e-3 else "> 1,000"))
    return tiles


def _read(package: str, name: str) -> str:
    return (files(package) / name).read_text(encoding="utf-8")
