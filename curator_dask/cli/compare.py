"""``compare``: how far two outputs are from one another."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from curator_dask.cli.options import (
    Cluster,
    ClusterType,
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

_FEW = 32  # files are read without a cluster


def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help="Directory or URL that embed wrote to: what is known, wanted or before."
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The same of what is new, made or after.")],
    page: Annotated[
        Path | None,
        typer.Argument(
            metavar="PAGE",
            help="A file to write, such as compared.html: the tables, histograms, and images that one has alone.",
            show_default=False,
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B",
            help="Other columns to compare; several times, too.  [default: all]",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[
        int, typer.Option(min=2, help="Rows of each of which all pairs are looked at, at most.")
    ] = 10_000,
    k: Annotated[
        int, typer.Option("--k", min=1, help="Neighbours, of precision, recall, density, coverage.")
    ] = 5,
    permutations: Annotated[int, typer.Option(min=0, help="For CMMD's p.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    column: Annotated[str, typer.Option(help="Column of the vectors.")] = EMBEDDING_COLUMN,
    b_column: Annotated[
        str | None, typer.Option(help="The same of B, where that differs.", show_default=False)
    ] = None,
    check: Annotated[bool, typer.Option(help="Refuse vectors that two models made.")] = True,
    cluster: Cluster = ClusterType.auto,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: Annotated[
        str | None, typer.Option(help="JSON object for fsspec, where A is a URL.", show_default=False)
    ] = None,
    b_storage_options: Annotated[
        str | None, typer.Option(help="The same for B, where that differs.", show_default=False)
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Say how far two outputs are apart: Fréchet distance, CMMD, precision and recall, near rows, columns side by side.

    Each figure of A and B stands beside those of two random parts of A, and of B: what is as small is no difference.

    Exit code 0: done. 2: wrong usage, vectors of two models among it.
    """
    options = json_object(storage_options, "--storage-options") or None
    b_options = json_object(b_storage_options, "--b-storage-options") or None
    names = names_in(columns, "--columns")

    from curator_dask.compare import compare_outputs
    from curator_dask.outputs.failed import output_files
    from curator_dask.outputs.placing import locate

    with summary_to(json_file) as put, told_plainly("nothing was changed"):
        check_local(page or "")
        places = ((a, options), (b, b_options or options))
        files = sum(len(output_files(locate(path, each), each)) for path, each in places)
        if files <= _FEW and not (workers or scheduler_address or scheduler_file):
            place: AbstractContextManager[Any] = nullcontext()  # done before a cluster has started
        else:
            place = workers_of(cluster, scheduler_address, scheduler_file, workers)
        with place:
            found = compare_outputs(
                a,
                b,
                column=column,
                b_column=b_column,
                columns=names,
                page=page,
                sample=sample,
                k=k,
                permutations=permutations,
                seed=seed,
                check=check,
                storage_options=options,
                b_storage_options=b_options,
            )
        print(found)
        put(found.to_dict())
