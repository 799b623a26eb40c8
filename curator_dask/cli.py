"""The command line: ``curator-dask embed INPUT OUTPUT --model NAME``."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import curator_dask

EXIT_SHARD, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

app = typer.Typer(
    help="Embed the images of WebDataset shards on a Dask cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its table cuts the options' names where the terminal is narrow
)


class ClusterType(StrEnum):
    """Where to run."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class Decoder(StrEnum):
    """What decodes and resizes images."""

    dali = "dali"
    pillow = "pillow"


class Output(StrEnum):
    """Which output of the model is the embedding."""

    auto = "auto"
    pooled = "pooled"
    projected = "projected"
    logits = "logits"


class Metadata(StrEnum):
    """Where the rows come from."""

    auto = "auto"
    parquet = "parquet"
    tar = "tar"


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--model-kwargs") from None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"expected a JSON object, got {text}", param_hint="--model-kwargs")
    return found


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Options before a command."""
    if version:
        print(f"curator-dask {curator_dask.__version__}")
        raise typer.Exit


@app.command()
def embed(
    input_path: Annotated[
        str, typer.Argument(metavar="INPUT", help="Directory, glob, brace pattern or tar of the shards.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Directory for the Parquet files.")],
    model: Annotated[
        str,
        typer.Option(help="Any timm model: a name with or without tag, hf-hub:org/repo, local-dir:/folder."),
    ],
    cluster: Annotated[
        ClusterType, typer.Option(help="Start workers on the CPU or the GPUs of this machine.")
    ] = (ClusterType.auto),
    scheduler_address: Annotated[
        str | None,
        typer.Option(help="Connect to a running Dask scheduler instead, for example tcp://host:8786."),
    ] = None,
    scheduler_file: Annotated[str | None, typer.Option(help="The same, by the scheduler's file.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of workers to start.")] = None,
    id_col: Annotated[str, typer.Option(help="Column whose values are the keys in the tars.")] = "key",
    metadata: Annotated[
        Metadata, typer.Option(help="Rows from the Parquet beside each tar, or from the tar.")
    ] = (Metadata.auto),
    rows_per_partition: Annotated[
        int | None, typer.Option(min=1, help="Cut shards into partitions of so many rows.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 256,
    threads: Annotated[int, typer.Option(min=1, help="Decoding threads a worker.")] = 4,
    column: Annotated[str, typer.Option(help="Name of the embedding's column.")] = "image_embedding",
    model_output: Annotated[
        Output, typer.Option(help="What of the model's output is the embedding.")
    ] = Output.auto,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Larger images are not decoded.  [default: Pillow's limit]")
    ] = None,
    model_kwargs: Annotated[
        str | None,
        typer.Option(help="JSON object of arguments for timm's model, for example '{\"img_size\": 336}'."),
    ] = None,
    decoder: Annotated[Decoder, typer.Option(help="dali, or pillow: slower, the reference.")] = Decoder.dali,
    pretrained: Annotated[bool, typer.Option(help="Load the weights of the model's name.")] = True,
    checkpoint: Annotated[str | None, typer.Option(help="State dict to load over the model.")] = None,
    normalize: Annotated[bool, typer.Option(help="Make vectors unit length.")] = True,
    autocast: Annotated[bool, typer.Option(help="bf16 or fp16 where that is fast.")] = True,
    overwrite: Annotated[bool, typer.Option(help="Replace files that this command did not make.")] = False,
    drop_failed: Annotated[bool, typer.Option(help="Write failed rows to OUTPUT/_errors instead.")] = False,
    raise_on_error: Annotated[bool, typer.Option(help="Stop at the first image that fails.")] = False,
) -> None:
    """Embed every image, and write one Parquet file a shard.

    An interrupted run is started again with the same command: finished shards are skipped.

    Exit code 0: done, failed images are counted in the summary. 1: a shard could not be read, or an
    image with --raise-on-error. 2: wrong usage.
    """
    from curator_dask.client import get_client
    from curator_dask.datasets import ImageTextPairDataset
    from curator_dask.decode.loader import DEFAULT_MAX_PIXELS
    from curator_dask.errors import CuratorError, ImageError, ShardError
    from curator_dask.image.embedders import TimmImageEmbedder
    from curator_dask.webdataset.shards import discover

    try:
        discover(input_path)  # a wrong path should not cost the start of a cluster
        embedder = TimmImageEmbedder(
            model,
            pretrained=pretrained,
            batch_size=batch_size,
            num_threads_per_worker=threads,
            image_embedding_column=column,
            normalize_embeddings=normalize,
            autocast=autocast,
            output=model_output.value,
            checkpoint_path=checkpoint,
            model_kwargs=_json_object(model_kwargs),
            max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
            decoder=decoder.value,
            on_error="raise" if raise_on_error else "null",
        )
        with get_client(
            cluster_type=cluster.value,
            scheduler_address=scheduler_address,
            scheduler_file=scheduler_file,
            n_workers=workers,
        ):
            dataset = ImageTextPairDataset.from_webdataset(
                input_path, id_col, metadata=metadata.value, rows_per_partition=rows_per_partition
            )
            summary = embedder(dataset).save_metadata(output, overwrite=overwrite, drop_failed=drop_failed)
    except KeyboardInterrupt:
        print("\ninterrupted: finished shards are kept, the same command goes on from there", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except CuratorError as error:
        Console(stderr=True).print(
            f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        raise typer.Exit(EXIT_SHARD if isinstance(error, ImageError | ShardError) else EXIT_USAGE) from None
    if summary.failed_shards:
        raise typer.Exit(EXIT_SHARD)


if __name__ == "__main__":
    app()
