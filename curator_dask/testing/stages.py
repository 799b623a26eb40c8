"""`StageTests`: what every stage of a pipeline must do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest

from curator_dask.stages.base import ProcessingStage, image_inputs, image_outputs, names_of
from curator_dask.stages.fused import describe_stage
from curator_dask.stages.live import Chain, ChainSpec
from curator_dask.tasks import ImageBatch, ImageObject, Task


class StageTests:
    """The contract of `curator_dask.stages.ProcessingStage`; a subclass gives the fixture `stage`, perhaps `batch`."""

    @pytest.fixture
    def stage(self) -> ProcessingStage[Any, Any]:
        """The stage, made anew and not set up."""
        raise pytest.UsageError(f"{type(self).__name__} must have a fixture 'stage'")

    @pytest.fixture
    def batch(self) -> ImageBatch:
        """Images for it, one of which cannot be used; of noise, with vectors, unless a subclass gives others."""
        rng = np.random.default_rng(0)
        images = [
            ImageObject(
                image_path=f"shard.tar/{number}.jpg",
                image_id=str(number),
                metadata={"key": str(number), "__url__": "shard.tar", "caption": f"image {number}"},
                image_data=rng.integers(0, 256, (20 + number, 30, 3), np.uint8),
                embedding=rng.standard_normal(8).astype(np.float32),
                origin=("test", number),
            )
            for number in range(4)
        ]
        bad = images[2]
        bad.image_data, bad.embedding, bad.error = None, None, "not an image: a test"
        return ImageBatch(images, "test", "shard.tar batch 0")

    @staticmethod
    def through(stage: ProcessingStage[Any, Any], batch: ImageBatch) -> list[ImageObject]:
        """The images that come out when a stage is set up, given a batch, and torn down as in a run."""
        chain = Chain(ChainSpec.of([_Source(), stage]))
        try:
            out: Iterable[Task[Any]] = chain.feed(_one(copy.deepcopy(batch)), {})
            return [image for task in out if isinstance(task, ImageBatch) for image in task.data]
        finally:
            chain.close()

    def test_it_says_what_it_needs_and_makes(self, stage: ProcessingStage[Any, Any]) -> None:
        """In the form that a pipeline reads."""
        assert all(isinstance(name, str) for name in image_inputs(stage))
        assert all(kind is None or isinstance(kind, pa.DataType) for kind in image_outputs(stage).values())
        assert names_of(stage)

    def test_it_travels(self, stage: ProcessingStage[Any, Any]) -> None:
        """A pickled copy is the same stage, and is small: it holds settings, not models."""
        packed = cloudpickle.dumps(stage)
        assert len(packed) < 1_000_000, f"{len(packed)} bytes: models are made in setup()"
        assert describe_stage(pickle.loads(packed)) == describe_stage(stage)

    def test_images_with_an_error_pass(self, stage: ProcessingStage[Any, Any], batch: ImageBatch) -> None:
        """They are never left out, and keep their reason."""
        bad = {image.image_id: image.error for image in batch.data if image.error}
        assert bad, "the fixture 'batch' must have an image with an error"
        out = {image.image_id: image.error for image in self.through(stage, batch)}
        assert {key: out.get(key) for key in bad} == bad

    def test_no_image_becomes_another(self, stage: ProcessingStage[Any, Any], batch: ImageBatch) -> None:
        """Each keeps its key, its row and its place in the order; none comes twice."""
        given = [image.origin for image in batch.data]
        found = [image.origin for image in self.through(stage, batch) if image.origin is not None]
        assert len(found) == len(set(found)) and [each for each in given if each in found] == found
        keys = {image.origin: image.image_id for image in batch.data}
        assert all(
            image.image_id == keys[image.origin] for image in self.through(stage, batch) if image.origin
        )

    def test_what_it_makes_is_there(self, stage: ProcessingStage[Any, Any], batch: ImageBatch) -> None:
        """Every good image has the fields that it promises, or an error."""
        for image in self.through(stage, batch):
            for name in image_outputs(stage):
                there = getattr(image, name, None) is not None or name in image.metadata
                assert there or image.error or name in image.errors, f"{image.image_id} has no {name}"

    def test_each_image_gets_its_own(self, stage: ProcessingStage[Any, Any], batch: ImageBatch) -> None:
        """What an image gets does not depend on its neighbours."""
        for image in self.through(stage, batch):
            given = [each for each in batch.data if each.origin == image.origin]
            for alone in self.through(stage, ImageBatch(given, batch.dataset_name, batch.task_id)):
                for name, value in {**alone.metadata, "embedding": alone.embedding}.items():
                    found = image.embedding if name == "embedding" else image.metadata.get(name)
                    same = f"{image.image_id} has another {name} when it is alone"
                    if isinstance(value, np.ndarray | float) and found is not None:
                        np.testing.assert_allclose(found, value, atol=1e-4, err_msg=same)
                    else:
                        assert str(found) == str(value), same

    def test_the_same_again(self, stage: ProcessingStage[Any, Any], batch: ImageBatch) -> None:
        """Two runs give the same images, with the same metadata."""
        one, other = (self.through(stage, batch) for _ in range(2))
        assert [image.image_id for image in one] == [image.image_id for image in other]
        for first, second in zip(one, other, strict=True):
            assert str(first.metadata) == str(second.metadata) and first.error == second.error

    def test_an_empty_batch(self, stage: ProcessingStage[Any, Any], batch: ImageBatch) -> None:
        """Nothing in, nothing out."""
        assert self.through(stage, ImageBatch([], batch.dataset_name, batch.task_id)) == []


class _Source(ProcessingStage[Any, Any]):
    """In the reader's place."""

    thread_safe = True
    decoder = "dali"

    def process(self, task: Task[Any]) -> Task[Any]:
        """The task."""
        return task


def _one(batch: ImageBatch):  # type: ignore[no-untyped-def]
    yield batch
