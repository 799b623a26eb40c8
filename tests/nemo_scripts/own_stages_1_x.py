"""With NeMo Curator 1.x: stages of one's own, and one that stands for two, between reading and writing images."""

import argparse
from dataclasses import dataclass

import numpy as np
from nemo_curator.core.client import RayClient
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.base import CompositeStage, ProcessingStage
from nemo_curator.stages.file_partitioning import FilePartitioningStage
from nemo_curator.stages.image.embedders.reader_embedder import ImageReaderEmbeddingStage
from nemo_curator.stages.image.io.image_writer import ImageWriterStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import ImageBatch


@dataclass
class FirstValueStage(ProcessingStage[ImageBatch, ImageBatch]):
    """Keeps images the first value of whose vector is on the right side of a threshold."""

    threshold: float = 0.0
    sign: float = 1.0
    name: str = "first_value"
    resources = Resources(cpus=1.0, gpus=0.25)

    def process(self, task):
        raise NotImplementedError("process_batch is called instead")

    def process_batch(self, tasks):
        results = []
        for task in tasks:
            assert all(isinstance(image.embedding, np.ndarray) for image in task.data if image.error is None)
            kept = [
                image
                for image in task.data
                if image.error is not None or self.sign * (image.embedding[0] - self.threshold) >= 0
            ]
            results.append(
                ImageBatch(
                    task_id=f"{task.task_id}_{self.name}",
                    dataset_name=task.dataset_name,
                    data=kept,
                    _metadata=task._metadata,
                    _stage_perf=task._stage_perf,
                )
            )
        return results


@dataclass
class BetweenStage(CompositeStage[ImageBatch, ImageBatch]):
    """Two thresholds."""

    least: float
    most: float
    name: str = "between"

    def __post_init__(self):
        super().__init__()

    def decompose(self):
        return [
            FirstValueStage(self.least, name="not_below"),
            FirstValueStage(self.most, -1.0, name="not_above"),
        ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--model-dir", required=True)
    parser.add_argument("--least", type=float, required=True)
    parser.add_argument("--most", type=float, required=True)
    args = parser.parse_args()

    ray_client = RayClient()
    ray_client.start()
    pipeline = Pipeline(name="own_stages")
    pipeline.add_stage(
        FilePartitioningStage(file_paths=args.input, files_per_partition=2, file_extensions=[".tar"])
    )
    pipeline.add_stage(
        ImageReaderEmbeddingStage(model_dir=args.model_dir, dali_batch_size=4, reader_num_threads=2)
    )
    between = BetweenStage(args.least, args.most)
    pipeline.add_stage(between.with_({"not_above": {"resources": Resources(gpus=0.5)}}))
    pipeline.add_stage(ImageWriterStage(output_dir=args.output, images_per_tar=3).with_(name="writer"))
    print(pipeline.describe())
    pipeline.run()
    ray_client.stop()
