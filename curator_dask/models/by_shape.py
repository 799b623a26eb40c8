"""Models that take what transformers' processors make of an image: what is of one shape goes in together, unpadded.

So what is made of an image does not depend on those beside it. Memory that runs out halves a batch, and an image with
which a model fails costs its own row.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from curator_dask import backend
from curator_dask.errors import ImageError
from curator_dask.models.room import Room
from curator_dask.models.towers import silent_transformers
from curator_dask.models.weights import first_line

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

logger = logging.getLogger("curator_dask")

AHEAD = 4
"""Batches of images that are prepared together: those that become tensors of one shape go in together."""

_HELD = 1 << 30
"""Bytes of prepared images, above which no more are prepared before these are done."""


@dataclass(frozen=True)
class Prepared:
    """What goes into a model for one image.

    Attributes
    ----------
    tensors
        By name, as the model takes them; the first dimension is that along which those of several images are put
        together.
    """

    tensors: Mapping[str, torch.Tensor]

    @property
    def shapes(self) -> tuple[Any, ...]:
        """By which images may go in together, without padding."""
        return tuple((name, tuple(each.shape)) for name, each in sorted(self.tensors.items()))

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(each.numel() * each.element_size() for each in self.tensors.values())

    @property
    def length(self) -> int:
        """By which those of one shape are put in order: what is padded goes in with what is about as long."""
        return 0


P = TypeVar("P", bound=Prepared)
Found = TypeVar("Found")


class ByShape(ABC, Generic[P, Found]):
    """Base of such models, on this process's device.

    Parameters
    ----------
    model
        As transformers has it, on the device.
    info
        What makes its results, JSON-able.
    """

    #: What an image is not where the model fails, for reasons.
    done: ClassVar[str]

    def __init__(self, model: Any, info: dict[str, Any]) -> None:
        self.info = info
        self._backend = backend.current()
        self._model = model
        self._lock = threading.Lock()
        self._room = Room(info["source"], "{} images at once")

    @abstractmethod
    def _prepare(self, image: Image, values: Sequence[str] = ()) -> P:
        """What goes in for an image, RGB and upright, and what its row says, of a model that takes this."""

    @abstractmethod
    def _together(self, batch: Sequence[P]) -> list[Found]:
        """What comes of some images whose tensors have one shape."""

    @abstractmethod
    def _failed(self, reason: str) -> Found:
        """What stands for an image of which nothing comes."""

    def __call__(
        self, images: Sequence[Any], batch_size: int, values: Sequence[Sequence[str]] | None = None
    ) -> list[Found]:
        """Look at some images.

        Parameters
        ----------
        images
            uint8 (h, w, 3) each, upright, NumPy or CuPy.
        batch_size
            Images that go in together, at most; they do where their tensors have one shape. When the device runs out
            of memory the batch is halved, and stays halved for what comes after.
        values
            Of each image what its row says, for models that take this.
        """
        from PIL import Image

        with self._lock:
            found: dict[int, Found] = {}
            waiting: dict[Any, list[tuple[int, P]]] = {}
            held = 0
            for number, image in enumerate(images):
                pixels = image.get() if hasattr(image, "get") else image
                try:
                    with silent_transformers():  # some processors warn of each image
                        picture = Image.fromarray(np.asarray(pixels))
                        prepared = self._prepare(picture, () if values is None else values[number])
                except ImageError as error:
                    found[number] = self._failed(f"not {self.done}: {error}")
                    continue
                except Exception as error:
                    if backend.is_out_of_memory(error):
                        raise
                    said = f"{type(error).__name__}: {first_line(error)}"
                    found[number] = self._failed(f"not prepared: the model's processor failed: {said}")
                    continue
                waiting.setdefault(prepared.shapes, []).append((number, prepared))
                held += prepared.size
                if held > _HELD:
                    self._do(waiting, batch_size, found)
                    held = 0
            self._do(waiting, batch_size, found)
        return [found[number] for number in range(len(images))]

    def close(self) -> None:
        """Let the model and its device memory go."""
        self._model = None
        self._backend.release_memory()

    def inputs_of(self, batch: Sequence[P]) -> dict[str, torch.Tensor]:
        """The tensors of some images together, on the device, floats in the model's arithmetic."""
        import torch

        device, dtype = self._backend.torch_device, self._model.dtype
        inputs = {}
        for name, first in batch[0].tensors.items():
            together = torch.cat([each.tensors[name] for each in batch])
            inputs[name] = together.to(device, dtype if first.is_floating_point() else None)
        return inputs

    @property
    def not_finite(self) -> str:
        """The reason of an image for which the model gave NaN."""
        cure = "; dtype='bfloat16' (--dtype) has a larger range" if self.info["dtype"] == "float16" else ""
        return f"not finite: the model ({self.info['dtype']}) gave NaN{cure}"

    def one_at_a_time(self, what_changes: str) -> None:
        """Take one image at a time from now on, and say why."""
        self._room.limit = 1
        logger.warning(
            "%s: takes one image at a time: several at once change %s", self.info["source"], what_changes
        )

    def _do(self, waiting: dict[Any, list[tuple[int, P]]], size: int, found: dict[int, Found]) -> None:
        """Look at all that waits, and empty it."""
        while waiting:
            _, group = waiting.popitem()
            group.sort(key=lambda pair: pair[1].length)
            while group:
                some = group[: self._room.of(size)]
                made: list[Found] | None
                try:
                    made = self._together([each for _, each in some])
                except Exception as error:
                    is_full = backend.is_out_of_memory(error)
                    if is_full and not self._room.may_be_made(error, len(some)):
                        raise
                    if self._backend.lost() is not None:
                        raise
                    made = None if is_full else self._one_by_one([each for _, each in some], error)
                if made is None:
                    self._room.make(len(some))
                    continue
                found.update(zip((number for number, _ in some), made, strict=True))
                del group[: len(some)]

    def _one_by_one(self, batch: Sequence[P], error: Exception) -> list[Found]:
        """Look at some images with which a model failed together, so that it costs those rows that it is due to."""
        if len(batch) == 1:
            said = f"{type(error).__name__}: {first_line(error)}"
            return [self._failed(f"not {self.done}: the model failed: {said}")]
        found: list[Found] = []
        for each in batch:
            try:
                found += self._together([each])
            except Exception as its:
                if backend.is_out_of_memory(its) or self._backend.lost() is not None:
                    raise
                found += self._one_by_one([each], its)
        return found
