"""``fit``: a head of one's own, from labels of some images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curator_dask.cli.options import (
    Embeddings,
    EmbeddingsOptions,
    JsonFile,
    check_sheet,
    json_object,
    save_sheet,
    summary_to,
    told_plainly,
)
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.settings import check_local


def fit(
    embeddings: Embeddings,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where the head goes, such as good.safetensors.")
    ],
    label: Annotated[
        str, typer.Option(help="Column of the labels: booleans, numbers or text; null is none.")
    ],
    labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TABLE",
            help="Parquet, CSV, TSV or JSONL with keys and labels; several times, too: the last label of an image"
            " counts.  [default: the output itself]",
            show_default=False,
        ),
    ] = None,
    positive: Annotated[
        str | None,
        typer.Option(
            metavar="VALUE",
            help="Label that the head tells from all others.  [default: true, or the larger of two numbers]",
            show_default=False,
        ),
    ] = None,
    column: Annotated[str, typer.Option(help="Column of the vectors.")] = EMBEDDING_COLUMN,
    most: Annotated[int, typer.Option(min=20, help="Rows with a label that are taken, at most.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Of what is picked by chance.")] = 0,
    copies: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.999,
            help="1 - cosine up to which images are near copies, which are left out together; 0: none are looked for.",
        ),
    ] = 0.05,
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the images whose label speaks most against their score into this file: doubtful.png.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace FILE.")] = False,
    storage_options: EmbeddingsOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Fit a linear head to the vectors of rows that have a label, in this process.

    It says how well the head does on rows that it has not seen, what each threshold would keep, and which labels may be
    wrong. `score --head NAME=FILE` then scores all images. The same command again says the same, and
    leaves FILE as it is.

    Exit code 0: done. 2: wrong usage, too few labels among it.
    """
    options = json_object(storage_options, "--storage-options") or None
    check_sheet(sheet)
    if file.suffix != ".safetensors":
        raise typer.BadParameter(f"{file}: expected a name that ends in .safetensors", param_hint="FILE")
    from curator_dask.image.fitting import fit_head
    from curator_dask.image.fitting.heads import fitted_to

    keep = file.exists() and not overwrite
    if keep and fitted_to(file) is None:  # known before the vectors are read
        raise typer.BadParameter(
            f"{file}: is there, and is no head of `fit`; give another name, or --overwrite", param_hint="FILE"
        )
    with summary_to(json_file) as put, told_plainly("nothing was written"):
        check_local(file)
        found = fit_head(
            embeddings,
            label,
            labels=labels,
            positive=positive,
            column=column,
            most=most,
            seed=seed,
            copies=copies,
            storage_options=options,
        )
        if keep and not found.is_in(file):
            raise typer.BadParameter(
                f"{file}: is there, and is of other labels, vectors or settings, or damaged; give another name, or"
                " --overwrite",
                param_hint="FILE",
            )
        if not keep:
            found.save(file)
        print(found)
        if keep:
            print(f"{file}: nothing to do, it has this head")
        print(f"{file}: curator-dask score {embeddings} --head {file.stem}={file}")
        put(found.to_dict())
        doubtful = found.doubtful() if sheet is not None else []
        if sheet is not None and not doubtful:
            print(f"{sheet}: not written: no label speaks against its score")
        elif sheet is not None:
            from curator_dask.text.sheet import draw_sheet

            save_sheet(draw_sheet(f"{label}: labels that speak against the score", doubtful, options), sheet)
