"""What a loader does: a small spec that travels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from curator_dask import backend
from curator_dask.decode.orientation import ORIENTATIONS
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError

Transform = TransformSpec | Callable[..., Any] | None
"""A `TransformSpec`, or a callable that makes a tensor of an upright RGB ``PIL.Image.Image``, or None: whole."""

DEFAULT_MAX_PIXELS = 178_956_970
"""Twice ``PIL.Image.MAX_IMAGE_PIXELS``: where Pillow takes an image for a decompression bomb."""


GRAY16 = ("scale", "pillow")
"""What is done with grey of more than 8 bits a sample."""


DECODE_SCALES = ("exact", "fast")
"""Of JPEGs that are much larger than the model's input: decoded whole, or at a smaller scale of their own."""


def check_counts(**values: Any) -> None:
    """Raise ConfigError for the first argument that is no whole number of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name}={value!r}: expected a whole number of at least 1")


@dataclass(frozen=True)
class ImageOptions:
    """How images are read, decoded and put into batches; made at a door, of the arguments that it takes.

    Attributes
    ----------
    batch_size
        Images in a batch, at most.
    num_threads
        Threads that decode, at most.
    decoder
        ``"dali"``, or ``"pillow"`` for the exact reference.
    max_pixels
        Height times width above which an image is refused before it is decoded.
    use_index_files
        Use DALI's ``.idx`` beside a tar where it is there and fits.
    on_error
        ``"null"``: an image that cannot be used costs its row; ``"raise"``: it ends the run.
    image_member
        Suffix of the image among several of a sample (``"image.png"``); None: ``key.ext``, else the first.
    gray16
        Of grey with more than 8 bits a sample, ``"scale"``: the highest 8 of the bits that the file declares, and
        floats that stay below 2 as 0 to 1; ``"pillow"``: as Pillow's ``convert("RGB")`` makes it, above 255 white.
    orientation
        ``"stored"``: as the file says; ``"exif-column"``: where it says nothing as the row's ``exif`` does,
        img2dataset's text.
    decode_scale
        ``"exact"``: images are decoded whole. ``"fast"``: on a CPU a JPEG is decoded at a half, a quarter or an
        eighth of its size where twice the pixels that the transform resizes to are left, of each edge.

    Raises
    ------
    ConfigError
        An option has a value that it cannot have.
    """

    batch_size: int = 256
    num_threads: int = 4
    decoder: str = "dali"
    max_pixels: int = DEFAULT_MAX_PIXELS
    use_index_files: bool = True
    on_error: str = "null"
    image_member: str | None = None
    gray16: str = "scale"
    orientation: str = "stored"
    decode_scale: str = "exact"

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size, num_threads=self.num_threads, max_pixels=self.max_pixels)
        for name, known in (
            ("decoder", ("dali", "pillow")),
            ("on_error", ("null", "raise")),
            ("gray16", GRAY16),
            ("orientation", ORIENTATIONS),
            ("decode_scale", DECODE_SCALES),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected {known[0]!r} or {known[1]!r}")
        member = self.image_member
        if member is not None and (not isinstance(member, str) or not member or member.startswith(".")):
            raise ConfigError(
                f"image_member={member!r}: expected what follows the key and its dot, such as 'image.png'"
            )

    @classmethod
    def of(cls, settings: Any, num_threads: int) -> ImageOptions:
        """Those that an object has as attributes of the same names."""
        others = {
            each.name: getattr(settings, each.name) for each in fields(cls) if each.name != "num_threads"
        }
        return cls(num_threads=num_threads, **others)

    @property
    def named(self) -> tuple[str, ...]:
        """Of the options that came after the first version, those that are not as in it: for identities."""
        member = () if self.image_member is None else (self.image_member,)
        others = {"gray16": "scale", "orientation": "stored", "decode_scale": "exact"}
        return (
            *member,
            *(f"{name}={getattr(self, name)}" for name in others if getattr(self, name) != others[name]),
        )


@dataclass(frozen=True)
class LoaderSpec:
    """What a `Loader` does; hashable, so that a process can keep one loader a spec.

    Attributes
    ----------
    transforms
        What is made of each image: at least one `Transform`. A `TransformSpec`; or any callable that makes a
        tensor of an upright RGB ``PIL.Image.Image``; or None, for the whole image. Where all are callables Pillow
        decodes, whatever `decoder` says. Beside others a callable gets the same pixels, but the image's ``info``
        may be empty.
    batch_sizes
        For each transform the images in a batch for its model; of whole images a batch may also close with
        fewer, at `curator_dask.decode.batches.WHOLE_PIXELS`.
    num_threads
        Decode threads.
    decoder
        ``"dali"``, or ``"pillow"`` for the exact reference.
    max_pixels
        Height times width above which an image is refused before it is decoded.
    gray16, decode_scale
        See `ImageOptions`.
    device
        ``"cpu"`` or ``"gpu"``: where the pixels are wanted (``backend.Backend.device``).

    Raises
    ------
    ConfigError
        A field that no loader could have.
    """

    transforms: tuple[Transform, ...]
    batch_sizes: tuple[int, ...]
    num_threads: int
    decoder: str = "dali"
    max_pixels: int = DEFAULT_MAX_PIXELS
    device: str = "cpu"
    gray16: str = "scale"
    decode_scale: str = "exact"

    def __post_init__(self) -> None:
        if not isinstance(self.transforms, tuple) or not self.transforms:
            raise ConfigError(
                f"LoaderSpec.transforms: expected a tuple of at least one transform, got {self.transforms!r}"
            )
        for transform in self.transforms:
            if not (transform is None or isinstance(transform, TransformSpec) or callable(transform)):
                raise ConfigError(
                    "LoaderSpec.transforms: expected of each a TransformSpec, a callable that takes a PIL image, "
                    f"or None; got {type(transform).__name__}"
                )
        sizes = self.batch_sizes
        if (
            not isinstance(sizes, tuple)
            or len(sizes) != len(self.transforms)
            or not all(isinstance(size, int) and size >= 1 for size in sizes)
        ):
            raise ConfigError(
                "LoaderSpec.batch_sizes: expected a tuple of whole numbers of at least 1, one for each of the "
                f"{len(self.transforms)} transforms, got {sizes!r}"
            )
        for name in ("num_threads", "max_pixels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"LoaderSpec.{name}: expected a whole number of at least 1, got {value!r}")
        for name, known in (
            ("decoder", ("dali", "pillow")),
            ("device", ("cpu", "gpu")),
            ("gray16", GRAY16),
            ("decode_scale", DECODE_SCALES),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"LoaderSpec.{name}: expected {known[0]!r} or {known[1]!r}, got {getattr(self, name)!r}"
                )

    @classmethod
    def here(cls, transforms: tuple[Transform, ...], options: Sequence[ImageOptions]) -> LoaderSpec:
        """The spec for this process: its device, and no more threads than are of use there.

        Parameters
        ----------
        transforms
            See `LoaderSpec`.
        options
            Of each transform; they agree in what decides pixels.
        """
        import torch

        device = backend.current().device
        wanted = max(each.num_threads for each in options)
        # On a CPU more decoding threads than the worker's cores would only take turns with the model's.
        share = torch.get_num_threads() if device == "cpu" else wanted
        sizes = tuple(each.batch_size for each in options)
        first = options[0]
        how = (first.decoder, first.max_pixels, device, first.gray16, first.decode_scale)
        return cls(transforms, sizes, min(wanted, share), *how)
