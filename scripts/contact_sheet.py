"""Draw a contact sheet: a few images of a dataset, each with its nearest neighbours by the embeddings.

    python scripts/contact_sheet.py EMBEDDINGS_DIR DATASET_DIR OUT.png

Reads every Parquet file of ``EMBEDDINGS_DIR`` (columns ``key``, ``__url__``, ``image_embedding``, and
``caption`` and ``source`` where there are any) and the images of the tars in ``DATASET_DIR``.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont, ImageOps

SEED = 7
IMAGE_EXTENSIONS = {"jpg", "jpeg", "png", "webp"}

# Pixels.
TILE, GAP, MARGIN, FRAME = 172, 14, 36, 5
TEXT_HEIGHT, HEADER_HEIGHT, QUERY_GAP = 62, 128, 26
BACKGROUND, INK, FAINT, ACCENT, EMPTY = "#ffffff", "#1c1f24", "#6b7280", "#c2410c", "#eceef1"


def read_embeddings(folder: Path) -> tuple[list[dict[str, Any]], np.ndarray, int]:
    """Read the rows that have a vector.

    Returns
    -------
    rows : list of dict
        ``key``, ``shard`` (file name of the tar), ``caption`` and ``source`` (or None); one a vector.
    vectors : numpy.ndarray
        float32, (rows, dim), each of length 1.
    without : int
        Number of rows that have no vector.

    Raises
    ------
    SystemExit
        No Parquet file, a column is missing, or there are no vectors.
    """
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise SystemExit(f"error: no Parquet file in {folder}: run curator-dask embed first")
    rows: list[dict[str, Any]] = []
    matrices = []
    without = 0
    for file in files:
        table = pq.ParquetFile(file).read()
        missing = {"key", "__url__", "image_embedding"} - set(table.column_names)
        if missing:
            raise SystemExit(f"error: {file} has no column {sorted(missing)}; it has {table.column_names}")
        without += table["image_embedding"].null_count
        table = table.filter(table["image_embedding"].is_valid())
        if not table.num_rows:
            continue
        for row in table.drop_columns(["image_embedding"]).to_pylist():
            shard = row["__url__"].rsplit("/", 1)[-1]
            caption, source = row.get("caption") or "", row.get("source")
            rows.append({"key": str(row["key"]), "shard": shard, "caption": caption, "source": source})
        values = pc.list_flatten(table["image_embedding"])
        matrices.append(values.to_numpy().astype(np.float32).reshape(table.num_rows, -1))
    if not rows:
        raise SystemExit(f"error: none of the {without} rows in {folder} has an embedding")
    vectors = np.concatenate(matrices)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return rows, vectors / np.maximum(lengths, np.finfo(np.float32).tiny), without


def pick_queries(vectors: np.ndarray, count: int) -> list[int]:
    """Pick rows that differ: a random first one, then always the row least like all picked before.

    Half of the rows, those whose own neighbourhood is the sparsest, are not picked from: a lone outlier shows
    nothing about neighbours.
    """
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    depth = min(5, len(vectors) - 1)
    density = np.sort(similarity, axis=1)[:, -depth:].mean(axis=1) if depth else np.zeros(len(vectors))
    candidates = np.argsort(-density, kind="stable")[: max(count, len(vectors) // 2)]
    picked = [int(np.random.default_rng(SEED).choice(candidates))]
    nearest = similarity[candidates, picked[0]].copy()
    while len(picked) < min(count, len(candidates)):
        nearest[np.isin(candidates, picked)] = np.inf
        picked.append(int(candidates[np.argmin(nearest)]))
        nearest = np.maximum(nearest, similarity[candidates, picked[-1]])
    return picked


def count_same_source(rows: list[dict[str, Any]], vectors: np.ndarray) -> int | None:
    """How many rows have a nearest neighbour of their own ``source``; None where rows carry no source."""
    if len(rows) < 2 or any(row["source"] is None for row in rows):
        return None
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = similarity.argmax(axis=1)
    return sum(row["source"] == rows[other]["source"] for row, other in zip(rows, nearest, strict=True))


def read_images(dataset: Path, wanted: list[dict[str, Any]]) -> dict[tuple[str, str], Image.Image]:
    """The images by (shard, key), out of the shards' tars; one that cannot be read is left out."""
    images = {}
    for shard in sorted({row["shard"] for row in wanted}):
        keys = {row["key"] for row in wanted if row["shard"] == shard}
        with tarfile.open(dataset / shard) as tar:
            for member in tar:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                stem, _, extension = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if key not in keys or extension.lower() not in IMAGE_EXTENSIONS:
                    continue
                file = tar.extractfile(member)
                if file is not None:
                    with Image.open(io.BytesIO(file.read())) as image:
                        images[shard, key] = ImageOps.exif_transpose(image).convert("RGB")
    return images


def _lines(text: str, font: Any, width: int, count: int) -> list[str]:
    """The text broken into at most `count` lines of at most `width` pixels; an ellipsis where it goes on."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < count:
        line = words.pop(0)
        while words and font.getlength(f"{line} {words[0]}") <= width:
            line = f"{line} {words.pop(0)}"
        if words and len(lines) == count - 1:
            while line and font.getlength(f"{line}…") > width:
                line = line[:-1]
            line = f"{line.rstrip()}…"
        lines.append(line)
    return lines


def _draw_cell(
    sheet: Image.Image,
    corner: tuple[int, int],
    image: Image.Image | None,
    title: str,
    row: dict[str, Any],
    *,
    framed: bool,
) -> None:
    """One image in a square; below it a title, the key and the caption."""
    draw = ImageDraw.Draw(sheet)
    x, y = corner
    draw.rectangle((x, y, x + TILE - 1, y + TILE - 1), fill=EMPTY)
    if image is not None:
        small = ImageOps.contain(image, (TILE, TILE), Image.Resampling.LANCZOS)
        sheet.paste(small, (x + (TILE - small.width) // 2, y + (TILE - small.height) // 2))
    if framed:
        around = (x - FRAME, y - FRAME, x + TILE - 1 + FRAME, y + TILE - 1 + FRAME)
        draw.rectangle(around, outline=ACCENT, width=FRAME)
    bold, small_font = ImageFont.load_default(15), ImageFont.load_default(12)
    draw.text((x, y + TILE + 8), title, fill=ACCENT if framed else INK, font=bold)
    draw.text((x + TILE, y + TILE + 10), row["key"], fill=FAINT, font=small_font, anchor="ra")
    for number, line in enumerate(_lines(row["caption"], small_font, TILE, 2)):
        draw.text((x, y + TILE + 29 + 15 * number), line, fill=FAINT, font=small_font)


def draw_sheet(
    rows: list[dict[str, Any]],
    vectors: np.ndarray,
    without: int,
    dataset: Path,
    *,
    queries: int = 8,
    neighbours: int = 6,
) -> Image.Image:
    """The sheet: a header, then a line a query with its neighbours, nearest first.

    Parameters
    ----------
    rows, vectors, without
        What `read_embeddings` gives.
    dataset
        Folder of the tars.
    queries, neighbours
        Number of lines, and of neighbours in each; fewer where there are fewer images.

    Returns
    -------
    PIL.Image.Image
        RGB.
    """
    picked = pick_queries(vectors, queries)
    similarity = vectors[picked] @ vectors.T
    similarity[np.arange(len(picked)), picked] = -np.inf  # an image is not its own neighbour
    order = np.argsort(-similarity, axis=1, kind="stable")[:, : min(neighbours, len(rows) - 1)]
    images = read_images(dataset, [rows[i] for i in {*picked, *order.ravel().tolist()}])

    width = 2 * MARGIN + TILE + QUERY_GAP + neighbours * (TILE + GAP) - GAP
    line_height = TILE + TEXT_HEIGHT + GAP
    sheet = Image.new("RGB", (width, HEADER_HEIGHT + len(picked) * line_height + MARGIN // 2), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text(
        (MARGIN, 26), "Nearest neighbours by image embedding", fill=INK, font=ImageFont.load_default(28)
    )
    shards = len({row["shard"] for row in rows})
    about = f"{len(rows)} images of {shards} shards, {vectors.shape[1]} numbers each. "
    agreeing = count_same_source(rows, vectors)
    if agreeing is not None:
        about += f"{agreeing} of them have a version of the same photograph as nearest neighbour. "
    if without:
        about += f"{without} rows have no embedding."
    draw.text((MARGIN, 64), about, fill=FAINT, font=ImageFont.load_default(14))
    first = MARGIN + TILE + QUERY_GAP
    heading = ImageFont.load_default(15)
    draw.text((MARGIN, 98), "Query", fill=ACCENT, font=heading)
    draw.text(
        (first, 98),
        "Nearest of all other images, with their cosine similarity to the query",
        fill=INK,
        font=heading,
    )

    for line, query in enumerate(picked):
        y = HEADER_HEIGHT + line * line_height
        row = rows[query]
        image = images.get((row["shard"], row["key"]))
        _draw_cell(sheet, (MARGIN, y), image, "query", row, framed=True)
        for place, other in enumerate(order[line]):
            row = rows[other]
            title = f"{similarity[line, other]:.3f}"
            image = images.get((row["shard"], row["key"]))
            _draw_cell(sheet, (first + place * (TILE + GAP), y), image, title, row, framed=False)
    return sheet


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("embeddings", metavar="EMBEDDINGS_DIR", type=Path)
    parser.add_argument("dataset", metavar="DATASET_DIR", type=Path)
    parser.add_argument("out", metavar="OUT.png", type=Path)
    parser.add_argument("--queries", type=int, default=8, help="lines of the sheet (default: 8)")
    parser.add_argument("--neighbours", type=int, default=6, help="neighbours a line (default: 6)")
    options = parser.parse_args(arguments)
    rows, vectors, without = read_embeddings(options.embeddings)
    sheet = draw_sheet(
        rows, vectors, without, options.dataset, queries=options.queries, neighbours=options.neighbours
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out, optimize=True)
    print(f"{options.out}: {sheet.width} by {sheet.height} pixels, {len(rows)} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
