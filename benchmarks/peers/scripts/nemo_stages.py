"""NeMo Curator: its partitioning, DALI reader, conversion and Parquet writer, a timm stage where it has a CLIP."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from nemo_curator.backends.ray_data import RayDataExecutor
from nemo_curator.backends.xenna import XennaExecutor
from nemo_curator.core.client import RayClient
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.file_partitioning import FilePartitioningStage
from nemo_curator.stages.image.io.convert import ConvertImageBatchToDocumentBatchStage
from nemo_curator.stages.image.io.image_reader import ImageReaderStage
from nemo_curator.stages.resources import Resources
from nemo_curator.stages.text.io.writer import ParquetWriter
from nemo_curator.tasks import ImageBatch
from peer_common import Embedder, Job, serve
from PIL import Image

EXECUTORS = {"xenna": XennaExecutor, "ray_data": RayDataExecutor}


@dataclass
class CpuReaderStage(ImageReaderStage):
    """Its reader, where there is no GPU.

    As released, 1.4 asks DALI for device 0 and DALI then refuses: "You are trying to create a GPU DALI pipeline
    while CUDA is not available [...] set `device_id = None`". This does; the rest is its own.
    """

    def _create_dali_pipeline(self, tar_paths: list[str]) -> Any:
        from nvidia.dali import fn, pipeline_def, types

        @pipeline_def(batch_size=self.dali_batch_size, num_threads=self.num_threads, device_id=None)
        def webdataset_pipeline() -> Any:
            encoded = fn.readers.webdataset(paths=tar_paths, ext=["jpg"], missing_component_behavior="skip")
            return fn.decoders.image(encoded, device="cpu", output_type=types.RGB)

        pipeline = webdataset_pipeline()
        pipeline.build()
        return pipeline


@dataclass
class TimmStage(ProcessingStage[ImageBatch, ImageBatch]):
    """Embeds images that are decoded; written after NeMo Curator's stage for CLIP."""

    load: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    batch_size: int = 64
    name: str = "timm_embedding"
    resources: Resources = field(default_factory=lambda: Resources(cpus=1))

    def inputs(self) -> tuple[list[str], list[str]]:
        """Images."""
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]]:
        """Images with a vector each."""
        return ["data"], []

    def setup(self, _worker_metadata: Any = None) -> None:
        """Load the model."""
        self.embedder = Embedder(self.load, self.threads)

    def process(self, task: ImageBatch) -> ImageBatch:
        """Embed a batch and drop its pixels."""
        for start in range(0, len(task.data), self.batch_size):
            images = task.data[start : start + self.batch_size]
            pixels = [self.embedder.transform(Image.fromarray(image.image_data)) for image in images]
            for image, vector in zip(images, self.embedder.embed(torch.stack(pixels)).numpy(), strict=True):
                image.embedding, image.image_data = vector, None
        return task


def start(load: dict[str, Any], settings: dict[str, Any]) -> Job:
    """Start its Ray cluster; the workers are new in every job."""
    cores = len(os.sched_getaffinity(0))
    # Its CPUs are for scheduling only: every stage wants one, and there are more stages than cores.
    RayClient(num_cpus=4 * cores, include_dashboard=False).start()

    reader = ImageReaderStage if torch.cuda.is_available() else CpuReaderStage

    def job(shards: list[str], out: str) -> None:
        stages = [
            FilePartitioningStage(file_paths=shards, files_per_partition=1, file_extensions=[".tar"]),
            reader(dali_batch_size=settings["batch_size"], num_threads=cores, verbose=False),
            # Without a number its Ray Data executor starts as many as there are CPUs that it was told of.
            TimmStage(load=load, threads=settings["threads"], batch_size=settings["batch_size"]).with_(
                num_workers=settings["workers"]
            ),
            ConvertImageBatchToDocumentBatchStage(fields=["image_id", "embedding"]),
            ParquetWriter(path=out),
        ]
        pipeline = Pipeline(name="compare", stages=stages)
        pipeline.run(EXECUTORS[settings["executor"]]())

    return job


if __name__ == "__main__":
    serve(start)
