"""What commands share: their common options, and how they end."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import psutil
import typer

from curator_dask.settings import check_local

EXIT_SHARD, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)B?", re.IGNORECASE)


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


#: Whether workers that the command had started have ended.
_ended: list[bool] = []

InputPath = Annotated[
    str,
    typer.Argument(metavar="INPUT", help="Directory, glob, brace pattern or tar of the shards, or a URL."),
]
ImagesPath = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="Directory, glob, brace pattern or tar of the shards, or a URL; or the same of Parquet files with images"
        " in them; or a folder of image files.",
    ),
]
Images = Annotated[bool, typer.Option("--images", help="Take INPUT's image files, even where it has tars.")]
ImageColumn = Annotated[
    str,
    typer.Option(
        help="Column of the images, where they lie inside Parquet files; auto: the one that there is."
    ),
]
Captions = Annotated[
    str,
    typer.Option(
        help="Of image files: txt beside each, a Parquet, CSV or JSONL file with file_name, or none."
    ),
]
IdColumn = Annotated[str, typer.Option(help="Column whose values are the keys in the tars.")]
RowSource = Annotated[Metadata, typer.Option(help="Rows from the Parquet beside each tar, or from the tar.")]
Cluster = Annotated[ClusterType, typer.Option(help="Start workers on the CPU or the GPUs of this machine.")]
SchedulerAddress = Annotated[
    str | None, typer.Option(help="Connect to a running Dask scheduler instead, for example tcp://host:8786.")
]
SchedulerFile = Annotated[str | None, typer.Option(help="The same, by the scheduler's file.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Number of workers to start.")]
StorageOptions = Annotated[
    str | None,
    typer.Option(
        help="JSON object for fsspec, where INPUT is a URL, for example '{\"anon\": true}'.",
        show_default=False,
    ),
]

#: Of commands that run a model over images.
RowsPerPartition = Annotated[
    int | None, typer.Option(min=1, help="Cut shards into partitions of so many rows.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images a forward pass, at most.")]
Threads = Annotated[int, typer.Option(min=1, help="Decoding threads a worker.")]
MaxPixels = Annotated[
    int | None, typer.Option(min=1, help="Larger images are not decoded.  [default: Pillow's limit]")
]
ModelKwargs = Annotated[
    str | None,
    typer.Option(help="JSON object of arguments for timm's model, for example '{\"img_size\": 336}'."),
]
ModelDir = Annotated[
    str | None,
    typer.Option(help="Folder with the files of a repository, or for them.", show_default=False),
]
Recall = Annotated[
    float | None,
    typer.Option(
        help="Of --index: share of the nearest that is to be found.  [default: 0.99]", show_default=False
    ),
]
HowDecoded = Annotated[Decoder, typer.Option(help="dali, or pillow: slower, the reference.")]
Pretrained = Annotated[bool, typer.Option(help="The weights of its name, or random ones, for a trial.")]
Checkpoint = Annotated[str | None, typer.Option(help="Weights in place of its own: a state dict.")]
Orientation = Annotated[
    str, typer.Option(help="stored, or exif-column: by img2dataset's 'exif' where the file has none.")
]
Gray16 = Annotated[str, typer.Option(help="Grey of over 8 bits: scale, or pillow: clip.")]
DecodeScale = Annotated[
    str,
    typer.Option(
        help="exact, or fast: JPEGs of many megapixels are decoded smaller, twice as fast on a CPU."
    ),
]
ImageMember = Annotated[str | None, typer.Option(help="Which of several images a sample, as image.png.")]
Compile = Annotated[
    bool | None,
    typer.Option(help="torch.compile: always, or never; else where it pays.", show_default=False),
]
PartOfRun = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="I/N",
        help="Do one part of the shards, 0/8 to 7/8 of 8: for array jobs, which write to one output at once.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option(help="Replace files that this command did not make.")]
DropFailed = Annotated[bool, typer.Option(help="Write failed rows to OUTPUT.errors instead.")]
RaiseOnError = Annotated[bool, typer.Option(help="Stop at the first image that fails.")]
NestedJson = Annotated[bool, typer.Option(help="Nested JSON of tars as columns of text.")]

Blur = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Blur what is in the boxes of this column, as detected_boxes; samples that cannot be are left out.",
        show_default=False,
    ),
]
BlurOnly = Annotated[
    list[str] | None,
    typer.Option(
        metavar="A,B", help="Labels of the boxes that are blurred; several times, too.", show_default=False
    ),
]
BlurStrength = Annotated[float, typer.Option(help="Sigma, in tenths of a box's longer side.")]
BlurKeepUnseen = Annotated[
    bool, typer.Option("--blur-keep-unseen", help="Export rows whose boxes are null as they are.")
]

Embeddings = Annotated[
    str,
    typer.Argument(
        metavar="EMBEDDINGS", help="Directory or URL that embed wrote to, or of other Parquet files."
    ),
]
EmbeddingsOptions = Annotated[
    str | None, typer.Option(help="JSON object for fsspec, where EMBEDDINGS is a URL.", show_default=False)
]
OutputOptions = Annotated[
    str | None, typer.Option(help="The same for OUTPUT, where that differs.", show_default=False)
]
JsonFile = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the summary as a JSON object; - is standard output, and nothing else is written there.",
        show_default=False,
    ),
]


def json_object(text: str | None, option: str) -> dict[str, Any]:
    """The JSON object that an option was given."""
    try:
        found = json.loads(text) if text else {}
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint=option) from None
    if not isinstance(found, dict):
        # Without the text: it may hold secrets.
        expected = f"expected a JSON object, such as '{{\"anon\": true}}', got a {type(found).__name__}"
        raise typer.BadParameter(expected, param_hint=option)
    return found


TextStatisticsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--text-statistics",
        metavar="A,B",
        help="Columns that say of each caption what it is: words,language, or all; personal for e-mail"
        " addresses, telephone numbers and their like. Several times, too.",
        show_default=False,
    ),
]
TextPrefix = Annotated[str, typer.Option(help="Before the names of the captions' statistics.")]
LanguageModelFile = Annotated[
    str | None,
    typer.Option(
        "--language-model",
        metavar="FILE",
        help="fastText's model for the captions' language, such as lid.176.bin.  [default: lid.176.ftz, which is here]",
        show_default=False,
    ),
]


def check_language_model(model: str | None, statistics: Collection[str] | None) -> None:
    """Raise BadParameter where a model of languages is given, and none of the captions' statistics asks for it."""
    if model is not None and not statistics:
        raise typer.BadParameter(
            "nothing is asked of it: give --text-statistics language as well", param_hint="--language-model"
        )


def names_in(given: Iterable[str] | None, option: str) -> list[str] | None:
    """The names that an option was given, with commas between or one at a time, each once; None: it was not given."""
    if not given:
        return None
    names = [name.strip() for text in given for name in text.split(",")]
    if not all(names):
        raise typer.BadParameter(
            f"{', '.join(given)!r}: expected names with commas between", param_hint=option
        )
    return list(dict.fromkeys(names))


def bytes_in(text: str | None, option: str) -> int | None:
    """The bytes of a size such as 1GB that an option was given; None: it was not given."""
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise typer.BadParameter(f"{text!r}: expected a size, such as 1GB or 500MB", param_hint=option)
    return int(float(match["number"]) * _UNITS[match["unit"].upper()])


@contextmanager
def workers_of(
    cluster: ClusterType, address: str | None, file: str | None, number: int | None
) -> Iterator[Any]:
    """A client of the running scheduler that was named, or else of workers that are started for the command.

    Once the command is done it says what the whole of it has taken: the seconds of summaries are of the work alone.
    """
    from curator_dask.cluster.client import get_client

    with get_client(
        cluster_type=cluster.value, scheduler_address=address, scheduler_file=file, n_workers=number
    ) as client:
        yield client
    _ended.append(True)


@contextmanager
def workers_when_needed(
    cluster: ClusterType, address: str | None, file: str | None, number: int | None, embed: bool = False
) -> Iterator[Callable[[], AbstractContextManager[Any]]]:
    """What opens the cluster of `workers_of`, which stays open for the rest of the block, however often it is asked.

    Parameters
    ----------
    cluster, address, file, number
        As for `workers_of`.
    embed
        Workers that are started are going to embed.
    """
    with ExitStack() as stack:

        @functools.cache
        def started() -> Any:
            if embed and not (address or file):
                from curator_dask.cluster.client import load_ahead

                load_ahead(cluster.value, number)
            return stack.enter_context(workers_of(cluster, address, file, number))

        yield lambda: nullcontext(started())


@contextmanager
def told_plainly(interrupted: str) -> Iterator[None]:
    """Errors as one line and an exit code; what `interrupted` says when the user has enough."""
    from curator_dask.cluster.interrupts import ended_as_by_ctrl_c, heard
    from curator_dask.errors import CuratorError

    came: list[int] = []
    try:
        _ended.clear()
        with ended_as_by_ctrl_c() as came, heard():
            yield
        if _ended:  # last, behind the summary, which some commands say when their workers have gone
            print(
                f"{time.time() - psutil.Process().create_time():.1f} s in all, from the start of the command"
            )
    except Exception as error:
        if came:  # the signal went to the workers as well, as Slurm's do, and their end was noticed first
            _end_interrupted(interrupted, came)
        if isinstance(error, CuratorError):
            _end_with(error)
        raise
    except KeyboardInterrupt:
        _end_interrupted(interrupted, came)


def _end_interrupted(said: str, came: Sequence[int]) -> NoReturn:
    """End as a shell tells an end by the first of some signals, of a Ctrl-C where there are none."""
    by = f" by {signal.Signals(came[0]).name}" if came else ""
    print(f"\ninterrupted{by}: {said}", file=sys.stderr)
    raise typer.Exit(128 + came[0] if came else EXIT_INTERRUPTED) from None


def _end_with(error: Exception) -> NoReturn:
    from rich.console import Console

    from curator_dask.errors import ImageError, NoMatchError, ShardError

    Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    of_data = isinstance(error, ImageError | NoMatchError | ShardError)
    raise typer.Exit(EXIT_SHARD if of_data else EXIT_USAGE) from None


@contextmanager
def summary_to(file: str | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What puts a summary into the file of ``--json``; with ``-`` it alone goes to standard output."""
    if file == "-":
        output = sys.stdout
        with redirect_stdout(sys.stderr):
            yield lambda summary: print(json.dumps(summary), file=output)
        return
    with told_plainly("nothing was written"):
        check_local(file or "")
    folder = Path(file or "").absolute().parent
    if file is not None and (Path(file).is_dir() or not os.access(folder, os.W_OK)):
        raise typer.BadParameter(f"{file}: no file can be written there", param_hint="--json")

    def write(summary: Mapping[str, Any]) -> None:
        from curator_dask.errors import OutputError

        try:
            if file is not None:
                Path(file).write_text(f"{json.dumps(summary)}\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{file}: the summary could not be written: {error.strerror}") from error

    yield write


def check_sheet(path: Path | None) -> None:
    """Refuse a name to which no picture can be saved, before anything is computed."""
    if path is None:
        return
    with told_plainly("nothing was written"):
        check_local(path)
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"{path}: its folder is not there", param_hint="--sheet")
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise typer.BadParameter(
            f"{path}: expected a name such as found.png or found.jpg", param_hint="--sheet"
        )


def save_sheet(sheet: Any, path: Path) -> None:
    """Save a picture."""
    from curator_dask.errors import OutputError

    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be written: {error}. Give another name, as found.png") from error
