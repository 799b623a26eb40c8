"""Stages for tests: one that reads the colour of an image, and some that a user might write."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pyarrow as pa
from colours import ColourReader

from curator_dask.stages import ProcessingStage
from curator_dask.stages.image import (
    FilePartitioningStage,
    ImageEmbeddingStage,
    ImageParquetWriterStage,
    ImageReaderStage,
)


class ColourStage(ImageEmbeddingStage):
    """Embeds an image as its mean colour, by the same model as `ColourReader`."""

    def encoder_spec(self):
        return ColourReader().encoder_spec()


def stages_of(folder, out=None, *between, size=1, batch=4, writer=None, embeds=True, **reader):
    """The stages of a pipeline that embeds colours, with others between reader and embedding."""
    stages = [
        FilePartitioningStage(os.fspath(folder), files_per_partition=size),
        ImageReaderStage(dali_batch_size=batch, **reader),
        *between,
    ]
    if embeds:
        stages.append(ColourStage(model_inference_batch_size=3, remove_image_data=True))
    if out is not None:
        stages.append(ImageParquetWriterStage(out, **(writer or {})))
    return stages


class Brightness(ProcessingStage):
    """Adds the mean of the pixels to the metadata."""

    name = "brightness"

    def __init__(self, typed=True):
        self.typed = typed

    def inputs(self):
        return ["data"], ["image_data"]

    def outputs(self):
        return ["data"], {"brightness": pa.float32()} if self.typed else ["brightness"]

    def process(self, task):
        for image in task.data:
            if image.error is None:
                image.metadata["brightness"] = float(image.image_data.mean())
        return task


class KeepRed(ProcessingStage):
    """Leaves out what has little red in it; images that failed stay."""

    def __init__(self, least):
        self.least = least

    def inputs(self):
        return ["data"], ["embedding"]

    def process(self, task):
        task.data = [each for each in task.data if each.error or each.embedding[0] >= self.least]
        return task


class Shout(ProcessingStage):
    """Changes the captions."""

    def inputs(self):
        return ["data"], ["caption"]

    def process(self, task):
        for image in task.data:
            image.metadata["caption"] = image.metadata["caption"].upper()
        return task


class FailsOn(ProcessingStage):
    """Raises on an image, as long as a file is there."""

    def __init__(self, key, flag):
        self.key, self.flag = key, os.fspath(flag)

    def process(self, task):
        if any(image.image_id == self.key for image in task.data) and Path(self.flag).exists():
            raise ValueError("no such luck")
        return task


class DeadlyStage(ProcessingStage):
    """Takes the worker down with it, on one image."""

    def __init__(self, key):
        self.key = key

    def process(self, task):
        if any(image.image_id == self.key for image in task.data):
            os._exit(1)
        return task


class Diary(ProcessingStage):
    """Leaves a file for each of its calls, named by process and thread."""

    def __init__(self, folder, seconds=0.0, thread_safe=False):
        self.folder, self.seconds, self.thread_safe = os.fspath(folder), seconds, thread_safe

    def write(self, what):
        name = f"{what}-{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}"
        Path(self.folder, name).touch()

    def setup_on_node(self, node_info=None, worker_metadata=None):
        self.write("node")

    def setup(self, worker_metadata=None):
        self.write("setup")

    def process(self, task):
        self.write("begin")
        time.sleep(self.seconds)
        self.write("end")
        return task

    def teardown(self):
        self.write("teardown")


def most_at_once(folder) -> int:
    """How many calls of `Diary.process` there were at a time, at most."""
    events = [path.name.split("-") for path in Path(folder).iterdir()]
    steps = sorted(
        (int(at), 1 if what == "begin" else -1) for what, _, _, at in events if what in ("begin", "end")
    )
    now = most = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most
