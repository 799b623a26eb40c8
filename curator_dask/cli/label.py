"""``label``: a page to label images by looking."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from curator_dask.cli.options import (
    Cluster,
    ClusterType,
    Embeddings,
    EmbeddingsOptions,
    JsonFile,
    SchedulerAddress,
    SchedulerFile,
    Workers,
    json_object,
    names_in,
    summary_to,
    told_plainly,
    workers_of,
)
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.settings import check_local

_FEW = 32  # files are looked at without a cluster


def label(
    embeddings: Embeddings,
    page: Annotated[Path, typer.Argument(metavar="PAGE", help="The file to write, such as good.html.")],
    name: Annotated[str, typer.Option(help="Column of the labels, and of the head's scores.")],
    classes: Annotated[
        list[str],
        typer.Option(metavar="A,B", help="Two to nine: yes,no or cat,dog,other; several times, too."),
    ] = ["yes,no"],  # noqa: B006 - typer's own
    number: Annotated[int, typer.Option(min=1, help="Pictures, at most; 2,000 are the most.")] = 200,
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Show those of which the head with these scores is least sure, and some of the highest and the lowest;"
            " of several classes all their columns: cat,dog.  [default: rows spread over the vectors]",
            show_default=False,
        ),
    ] = None,
    at: Annotated[
        float | None,
        typer.Option(help="Of --by: the score at which it decides.  [default: 0.5]", show_default=False),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="CONDITION", help='Only rows that pass: "width >= 256".', show_default=False),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TABLE",
            help="Leave out rows that have a label there: what an earlier page saved; several times.",
            show_default=False,
        ),
    ] = None,
    eps: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Near copies, which are shown once, have a cosine of at least 1 - eps."
        ),
    ] = 0.03,
    column: Annotated[str, typer.Option(help="Column of the vectors.")] = EMBEDDING_COLUMN,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn by chance.")] = 0,
    cluster: Cluster = ClusterType.auto,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: EmbeddingsOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Write a page to label images by looking, one HTML file that needs no network: with keys, mouse or touch.

    It saves a table, and says the commands that make a head of it (`fit`), score all images with that (`score`), and
    write the next page. Workers are started where there are more than a few files.

    Exit code 0: done. 2: wrong usage, or there is no such output.
    """
    options = json_object(storage_options, "--storage-options") or None

    from curator_dask.labelling import label_page
    from curator_dask.outputs.failed import output_files
    from curator_dask.outputs.placing import locate

    with summary_to(json_file) as put, told_plainly("nothing was written"):
        check_local(page)
        few = len(output_files(locate(embeddings, options), options)) <= _FEW
        if few and not (workers or scheduler_address or scheduler_file):
            place: AbstractContextManager[Any] = nullcontext()  # done before a cluster has started
        else:
            place = workers_of(cluster, scheduler_address, scheduler_file, workers)
        with place:
            done = label_page(
                embeddings,
                page,
                name,
                classes=names_in(classes, "--classes") or (),
                number=number,
                by=names_in(by, "--by"),
                at=at,
                where=where,
                labels=labels or (),
                eps=eps,
                column=column,
                seed=seed,
                storage_options=options,
            )
        put(done.to_dict())
