"""What commands share that run a model over the images of shards, and write a Parquet file a shard."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curator_dask.cli.options import ClusterType, workers_of

if TYPE_CHECKING:
    from curator_dask.datasets import ImageTextPairDataset
    from curator_dask.outputs.finished import FinishedCommand
    from curator_dask.runs.parts import Part
    from curator_dask.runs.summary import SaveSummary
    from curator_dask.webdataset.shards import ShardSet

logger = logging.getLogger("curator_dask")

# Options of commands that run models of transformers'.
ModelDir = Annotated[
    str | None, typer.Option(help="Folder with the weights, or for them.  [default: the hub's cache]")
]
Arithmetic = Annotated[
    str, typer.Option(help="float32, bfloat16, float16; auto: float32 on CPUs, on GPUs the checkpoint's.")
]
Together = Annotated[int, typer.Option(min=1, help="Images that go in together, at most.")]

EachImage = Annotated[
    bool,
    typer.Option("--each-image", help="A row for each image of a sample of a tar: key_0, key_1, ..."),
]

#: Arguments that do not decide what is made.
_NOT_MADE_BY = ("json_file", "min_good", "workers")

Steps = Callable[["ImageTextPairDataset"], "ImageTextPairDataset"]


@dataclass(frozen=True)
class OverImages:
    """What such a command was told.

    Attributes
    ----------
    given
        All its arguments, by name.
    options, output_options
        For fsspec, of the input, and of the output where that has its own.
    """

    given: Mapping[str, Any]
    options: dict[str, Any] | None
    output_options: dict[str, Any]

    def run(self, column: str, make: Callable[[ShardSet], Steps]) -> SaveSummary:
        """Do it, unless it is known without a cluster that nothing is left to be done.

        Parameters
        ----------
        column
            That the model makes, or the first of them.
        make
            Given the shards, sees that nothing is wrong with the arguments, before there is a cluster, and gives what
            is done to the dataset.
        """
        from curator_dask.cluster.client import load_ahead
        from curator_dask.outputs.lock import RunLock
        from curator_dask.rows.reading import choose_source
        from curator_dask.storage import absolute, is_remote
        from curator_dask.webdataset.finding import find_shards

        given, output, part = self.given, self.given["output"], self.part
        cluster, workers = given["cluster"].value, given["workers"]
        if self.embeds_here and not (is_remote(output) or os.path.lexists(absolute(output))):
            load_ahead(cluster, workers)  # all is left to do
        # What is wrong with the arguments should not cost the start of a cluster.
        if given["each_image"] and given.get("image") is not None:
            raise typer.BadParameter(
                "takes all images of a sample, and --image one of them: give one of the two",
                param_hint="--each-image",
            )
        which = {name: given[name] for name in ("images", "image_column", "id_col", "each_image")}
        found = find_shards(given["input_path"], self.options, **which)
        source = choose_source(given["metadata"].value, found, self.options)
        if not is_remote(output):
            if Path(absolute(output)).is_file():
                from curator_dask.outputs.saving import check_writable

                check_writable(absolute(output))  # which says so
            RunLock(absolute(output), part=part).check()
        mine = found if part is None else found.those(part.takes)
        if part is not None and not mine.shards:
            return self._none(part, found)
        before = self._before(found, mine, source, column)
        return (before.summary() if before is not None else None) or self._run(found, source, make, before)

    @property
    def part(self) -> Part | None:
        """Which part of the shards is to be done; None: all."""
        from curator_dask.runs.parts import Part

        return Part.of_given(self.given["part"])

    def _none(self, part: Part, found: ShardSet) -> SaveSummary:
        """Of a part that has no shard, for which no cluster is started."""
        from curator_dask.runs.parts import told_part
        from curator_dask.runs.summary import SaveSummary
        from curator_dask.storage import absolute

        summary = SaveSummary(absolute(self.given["output"]), part=told_part(part, 0, len(found)))
        logger.info("%s", summary)
        return summary

    @property
    def own_workers(self) -> bool:
        """Whether workers are started for the command; those elsewhere have other files."""
        return not (self.given["scheduler_address"] or self.given["scheduler_file"])

    @property
    def embeds_here(self) -> bool:
        """Whether such workers are going to load a model."""
        return self.own_workers and self.given["model"] is not None

    def _before(self, found: ShardSet, mine: ShardSet, source: str, column: str) -> FinishedCommand | None:
        from curator_dask.cluster.device import device_of_new_workers
        from curator_dask.models.sources import Sources
        from curator_dask.outputs.finished import FinishedCommand
        from curator_dask.outputs.placing import locate
        from curator_dask.storage import absolute

        given, output, own = self.given, self.given["output"], self.output_options
        named = [given["captions"]] if given["captions"] not in ("txt", "none") else []
        files = [*named, *(given[name] for name in ("class_names", "language_model") if given.get(name))]
        model, folder = given["model"], given["model_dir"]
        sources = (
            Sources(tuple(absolute(each) for each in files))
            if model is None
            else Sources.of(model, folder, given.get("checkpoint"), given.get("pretrained", True), files)
        )
        if sources is None or not self.own_workers or given.get("cover"):  # whose model is another
            return None
        asked = {name: value for name, value in given.items() if name not in _NOT_MADE_BY}
        same = output.partition("://")[0] == found.root.partition("://")[0]
        there = own or (self.options if same else None)
        return FinishedCommand(
            {**asked, "folder": str(Path.cwd())},
            mine,
            source,
            locate(output, there),
            column,
            sources,
            device_of_new_workers(given["cluster"].value)[0],
            self.options,
            there,
            self.part,
            len(found),
        )

    def _run(
        self, found: ShardSet, source: str, make: Callable[[ShardSet], Steps], before: FinishedCommand | None
    ) -> SaveSummary:
        from curator_dask.cluster.client import load_ahead

        given, options = self.given, self.options
        cluster: ClusterType = given["cluster"]
        if self.embeds_here:
            load_ahead(cluster.value, given["workers"])

        from curator_dask.datasets import ImageTextPairDataset
        from curator_dask.models.hub import is_transformers
        from curator_dask.models.weights import check_name
        from curator_dask.outputs.finished import repository_of
        from curator_dask.rows.image_files import captions_of
        from curator_dask.rows.reading import learn_schema

        model, id_col = given["model"], given["id_col"]
        of_images = captions_of(given["captions"], found, id_col, options)
        if source == "parquet":
            learn_schema(found.shards, source, id_col, options)
        steps = make(found)
        if self.embeds_here and not is_transformers(model):
            check_name(model)
        # Without options of its own those of the dataset hold for the output, too.
        saving: dict[str, Any] = {"storage_options": self.output_options} if self.output_options else {}
        at = (cluster, given["scheduler_address"], given["scheduler_file"], given["workers"])
        with workers_of(*at) as client:
            dataset = ImageTextPairDataset.from_shards(
                found,
                id_col,
                metadata=given["metadata"].value,
                rows_per_partition=given["rows_per_partition"],
                nested_json=given["nested_json"],
                storage_options=options,
                **of_images,
            )
            done = steps(dataset).save_metadata(
                given["output"],
                overwrite=given["overwrite"],
                drop_failed=given["drop_failed"],
                part=given["part"],
                **saving,
            )
            if before is not None:
                before.remember(done, repository_of(before.sources, model, client))
        return done

    @property
    def reading(self) -> dict[str, Any]:
        """How images are read, as embedders and classification models take it."""
        from curator_dask.decode.spec import DEFAULT_MAX_PIXELS

        given = self.given
        return {
            "batch_size": given["batch_size"],
            "num_threads_per_worker": given["threads"],
            "max_pixels": given["max_pixels"] or DEFAULT_MAX_PIXELS,
            "image_member": given["image"],
            "gray16": given["gray16"],
            **{name: given[name] for name in ("orientation", "decode_scale") if name in given},
            "decoder": given["decoder"].value,
            "on_error": "raise" if given["raise_on_error"] else "null",
        }
