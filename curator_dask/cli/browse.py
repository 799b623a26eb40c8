"""``browse``: a page to look at an output, served on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from curator_dask.cli.indexing import opened_index
from curator_dask.cli.options import (
    EXIT_INTERRUPTED,
    Cluster,
    ClusterType,
    Embeddings,
    EmbeddingsOptions,
    ModelDir,
    Recall,
    SchedulerAddress,
    SchedulerFile,
    Workers,
    json_object,
    told_plainly,
)
from curator_dask.frames.names import CAPTION_COLUMN, EMBEDDING_COLUMN


def browse(
    embeddings: Embeddings,
    model: Annotated[
        str | None,
        typer.Option(
            help="For texts, the tower that belongs to the image vectors: transformers' CLIP or SigLIP (org/repo, or a"
            " folder), or a folder of sentence-transformers.",
            show_default=False,
        ),
    ] = None,
    model_dir: ModelDir = None,
    index: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Search by an index of the vectors; where need be it is made there first, or made to fit.",
            show_default=False,
        ),
    ] = None,
    recall: Recall = None,
    column: Annotated[str, typer.Option(help="Column of the vectors.")] = EMBEDDING_COLUMN,
    caption: Annotated[str, typer.Option(help="Column of the captions.")] = CAPTION_COLUMN,
    check: Annotated[bool, typer.Option(help="Refuse vectors that the model is not for.")] = True,
    host: Annotated[
        str, typer.Option(help="Where to listen; another than this opens it to other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 0,
    open_: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    cluster: Cluster = ClusterType.auto,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: EmbeddingsOptions = None,
) -> None:
    """Serve a page to look at an output: by a text, an image, one of its rows, a condition or a column.

    It prints the page's URL, whose token lets in who knows it, and serves until Ctrl-C. Nothing is written; the page
    saves the rows that were chosen on it as a table.

    Exit code 130: ended by Ctrl-C. 1: a shard could not be read. 2: wrong usage, a model that is not for these vectors
    among it.
    """
    options = json_object(storage_options, "--storage-options") or None
    if index is None and (recall is not None or workers or scheduler_address or scheduler_file):
        raise typer.BadParameter("--recall, --workers and --scheduler-… are for --index, which is not given")

    with told_plainly("the page is closed"):
        from curator_dask.browsing.looking import Browser
        from curator_dask.browsing.serving import Serving, serve
        from curator_dask.indexing.searching import RECALL
        from curator_dask.text.embedders import make_text_embedder

        place = scheduler_address, scheduler_file, workers
        found = None if index is None else opened_index(embeddings, index, column, options, cluster, *place)
        browser = Browser(
            embeddings,
            None if model is None else make_text_embedder(model, model_dir),
            column=column,
            caption=caption,
            index=found,
            recall=RECALL if recall is None else recall,
            check=check,
            storage_options=options,
        )
        try:
            browser.load()
            serving = Serving(browser, host, port)
            if not serving.is_local:
                print(
                    f"{host}: other machines can reach this page; who has its URL sees the images",
                    file=sys.stderr,
                )

            def ready() -> None:
                print(
                    f"{len(browser.rows):,} rows; {browser.searched}. Open {serving.url} and end it by Ctrl-C",
                    flush=True,
                )
                if open_:
                    import webbrowser

                    webbrowser.open(serving.url)

            try:
                serve(serving, ready)
            except KeyboardInterrupt:
                if serving.is_busy:
                    _leave()
                raise
        finally:
            browser.close()


def _leave() -> None:
    """End without the answer that a thread is still at, for which Python would wait."""
    print("\ninterrupted: the page is closed", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)
