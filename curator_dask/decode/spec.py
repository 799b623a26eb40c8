"""What a loader does: a small spec that travels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curator_dask import backend
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError

if TYPE_CHECKING:
    import PIL.Image
    import torch


DEFAULT_MAX_PIXELS = 178_956_970
"""Twice ``PIL.Image.MAX_IMAGE_PIXELS``: where Pillow takes an image for a decompression bomb."""


def check_counts(**values: Any) -> None:
    """Raise ConfigError for the first argument that is no whole number of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name}={value!r}: expected a whole number of at least 1")


def check_decoder(decoder: str) -> None:
    """Raise ConfigError where there is no such decoder."""
    if decoder not in ("dali", "pillow"):
        raise ConfigError(f"decoder={decoder!r}: expected 'dali' or 'pillow'")


@dataclass(frozen=True)
class LoaderSpec:
    """What a `Loader` does; hashable, so that a process can keep one loader a spec.

    Attributes
    ----------
    transform
        A `TransformSpec`, or any callable that makes a tensor of an upright RGB ``PIL.Image.Image``. With a
        callable Pillow decodes, whatever `decoder` says. None: the images are wanted whole.
    batch_size
        Images in a batch for the model; of whole images a batch may also close with fewer, at
        `curator_dask.decode.batches.WHOLE_PIXELS`.
    num_threads
        Decode threads.
    decoder
        ``"dali"``, or ``"pillow"`` for the exact reference.
    max_pixels
        Height times width above which an image is refused before it is decoded.
    device
        ``"cpu"`` or ``"gpu"``: where the pixels are wanted (``backend.Backend.device``).

    Raises
    ------
    ConfigError
        A field that no loader could have.
    """

    transform: TransformSpec | Callable[[PIL.Image.Image], torch.Tensor] | None
    batch_size: int
    num_threads: int
    decoder: str = "dali"
    max_pixels: int = DEFAULT_MAX_PIXELS
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not (
            self.transform is None or isinstance(self.transform, TransformSpec) or callable(self.transform)
        ):
            raise ConfigError(
                "LoaderSpec.transform: expected a TransformSpec, a callable that takes a PIL image, or None; "
                f"got {type(self.transform).__name__}"
            )
        for name in ("batch_size", "num_threads", "max_pixels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"LoaderSpec.{name}: expected a whole number of at least 1, got {value!r}")
        for name, known in (("decoder", ("dali", "pillow")), ("device", ("cpu", "gpu"))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"LoaderSpec.{name}: expected {known[0]!r} or {known[1]!r}, got {getattr(self, name)!r}"
                )

    @classmethod
    def here(
        cls,
        transform: TransformSpec | Callable[[PIL.Image.Image], torch.Tensor] | None,
        batch_size: int,
        num_threads: int,
        decoder: str,
        max_pixels: int,
    ) -> LoaderSpec:
        """The spec for this process: its device, and no more threads than are of use there."""
        import torch

        device = backend.current().device
        # On a CPU more decoding threads than the worker's cores would only take turns with the model's.
        share = torch.get_num_threads() if device == "cpu" else num_threads
        return cls(transform, batch_size, min(num_threads, share), decoder, max_pixels, device)
