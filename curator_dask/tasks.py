"""What flows through the stages of a pipeline: groups of shards, then batches of images."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

T = TypeVar("T")

_IS_SHARD = re.compile(r"\.(tar|images|parquet(#[^/]*)?)$")

#: The field of an image that holds its vector; vectors of further models are fields of its metadata.
EMBEDDING = "embedding"


@dataclass
class Task(Generic[T]):
    """A piece of work that stages hand on.

    Attributes
    ----------
    data
        What there is to work on.
    dataset_name
        Of the dataset that it comes from.
    task_id
        Name of the piece, for messages.
    _stage_perf, _metadata
        A stage's own, handed on and not read: stages of NeMo Curator 1.x give them to the batches that they make.
    """

    data: T
    dataset_name: str = ""
    task_id: str = ""
    _stage_perf: list[Any] = field(default_factory=list, repr=False, kw_only=True)
    _metadata: dict[str, Any] = field(default_factory=dict, repr=False, kw_only=True)

    @property
    def num_items(self) -> int:
        """How many things are in it."""
        return len(self.data)  # type: ignore[arg-type]

    def problem(self) -> str | None:
        """What is wrong with the data, in words; None if nothing is."""
        return None

    def validate(self) -> bool:
        """Whether the data is as its type promises."""
        return self.problem() is None


@dataclass
class FileGroupTask(Task[list[str]]):
    """Shards that are read one after the other, in one Dask task: `data` are their urls.

    Attributes
    ----------
    storage_options
        For fsspec, where the shards are remote.
    """

    data: list[str] = field(default_factory=list)
    storage_options: dict[str, Any] | None = field(default=None, repr=False)

    def problem(self) -> str | None:
        """What is wrong with the data, in words; None if nothing is."""
        wrong = next(
            (url for url in self.data if not isinstance(url, str) or not _IS_SHARD.search(url)),
            None,
        )
        return None if wrong is None else f"expected urls of shards, found {wrong!r}"


@dataclass
class ImageObject:
    """One image of a dataset, and what is known of it.

    Attributes
    ----------
    image_path
        The shard's url, ``/``, and the member's name in the tar; or the path of the image's file.
    image_id
        The sample's key in the tar.
    metadata
        The row: the columns of the Parquet beside the shard (or caption and JSON fields of the tar), with the
        shard as ``__url__``. What stages add here can be written by the writer.
    image_data
        uint8 (H, W, 3), RGB, upright, of the image's own size; NumPy on a CPU, CuPy on a GPU. None where there is
        an `error`, or once it is not needed any more.
    embedding
        float32 (dim,) in host memory: 768 values for OpenAI's CLIP ViT-L/14.
    aesthetic_score, nsfw_score
        Of classifiers.
    error
        Why the image cannot be used; None if it can.
    errors
        By field, why a model has given no vector for it, where the image itself is good.
    origin
        By which it finds its row again: the name of a reading, and the number of the row. Set by the reader; an
        object that a stage makes of this image should have it too.
    """

    image_path: str = ""
    image_id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    image_data: Any = field(default=None, repr=False)
    embedding: np.ndarray | None = field(default=None, repr=False)
    aesthetic_score: float | None = None
    nsfw_score: float | None = None
    error: str | None = None
    errors: dict[str, str] = field(default_factory=dict, repr=False)
    origin: tuple[str, int] | None = field(default=None, repr=False, compare=False)


def vector_of(image: ImageObject, field: str) -> np.ndarray | None:
    """The vector in a field of an image."""
    return image.embedding if field == EMBEDDING else image.metadata.get(field)


def set_vector(image: ImageObject, field: str, vector: np.ndarray) -> None:
    """Put a vector into a field of an image."""
    if field == EMBEDDING:
        image.embedding = vector
    else:
        image.metadata[field] = vector


@dataclass
class ImageBatch(Task[list[ImageObject]]):
    """Images that are worked on together; those that cannot be used are among them, with their `error`."""

    data: list[ImageObject] = field(default_factory=list)

    def problem(self) -> str | None:
        """What is wrong with one of the images, in words; None if nothing is."""
        if not isinstance(self.data, list | tuple):
            return f"data: expected a list of ImageObject, found {type(self.data).__name__}"
        for number, image in enumerate(self.data):
            if not isinstance(image, ImageObject):
                return f"expected an ImageObject at place {number} of the batch, found {type(image).__name__}"
            wrong = _problem_of(image)
            if wrong:
                return f"image {image.image_id!r}: {wrong}"
        return None


def _problem_of(image: ImageObject) -> str | None:
    if not isinstance(image.image_id, str):
        return f"image_id: expected text, found {type(image.image_id).__name__}"
    if not isinstance(image.metadata, dict):
        return f"metadata: expected a dict, found {type(image.metadata).__name__}"
    if image.error is not None and (not isinstance(image.error, str) or not image.error):
        return f"error: expected a reason or None, found {image.error!r}"
    pixels, vector = image.image_data, image.embedding
    if pixels is not None:
        found = f"{getattr(pixels, 'dtype', type(pixels).__name__)} {getattr(pixels, 'shape', '')}"
        if str(getattr(pixels, "dtype", "")) != "uint8" or len(pixels.shape) != 3 or pixels.shape[2] != 3:
            return f"image_data: expected uint8 (H, W, 3), found {found}"
    if vector is not None and (not isinstance(vector, np.ndarray) or vector.ndim != 1):
        shape = getattr(vector, "shape", "")
        return f"embedding: expected a NumPy array (dim,), found {type(vector).__name__} {shape}"
    return None
