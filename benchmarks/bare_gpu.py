"""Bare forward passes in every precision that a GPU offers, and bare DALI with the settings it offers there.

Beside `benchmarks.bare`, which has one way to run each. All functions run in the processes of a
`benchmarks.harness.Team`, which is why they end in ``part, parts``.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import bare
from curator_dask import backend
from curator_dask.decode import dali
from curator_dask.decode.transforms import TransformSpec
from curator_dask.models.compiling import has_batch_norm

WAYS = {
    "eager, autocast": "float32 weights, torch.autocast: a cast of every weight in every pass",
    "eager, bf16 weights": "the whole model in bf16, its normalisation layers too",
    "compiled, autocast": "the first through torch.compile",
    "compiled, bf16 weights": "the second through torch.compile",
}
"""Ways to run a model in reduced precision."""

CHUNK = 128  # images of a run of the pipeline
DEPTH = 2  # runs that are under way at once


def forward(model_name: str, way: str, batch_size: int, images: int, part: int, parts: int) -> int:
    """A bare timm model with random weights, on one batch of noise that stays on the device.

    Parameters
    ----------
    model_name
        timm's name.
    way
        One of `WAYS`. Where the device has no fast reduced precision, autocast is none and bf16 slow.
    batch_size
        Images of a pass.
    images
        Images of all passes in all processes; at least one pass is made.
    part, parts
        See `benchmarks.bare`.

    Returns
    -------
    Images done.
    """
    device = backend.current().torch_device
    model = _model(model_name, way)
    pixels = _noise(model_name, batch_size, way.endswith("weights"))
    fine = has_batch_norm(model)
    dtype = backend.current().autocast_dtype(fine) if way.endswith("autocast") else None
    batches = max(1, images // parts // batch_size)
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype, enabled=dtype is not None),
        bare.frozen() if way.startswith("compiled") else contextlib.nullcontext(),
    ):
        for _ in range(batches):
            vectors = model(pixels)
        vectors.float().cpu()  # waits for the device
    return batches * batch_size


def data_config(model_name: str) -> dict[str, Any]:
    """What timm says a model wants of its input."""
    from timm.data import resolve_data_config
    from timm.models import get_pretrained_cfg

    registered = get_pretrained_cfg(model_name)
    if registered is None:
        raise ValueError(f"{model_name!r}: expected a name that timm registers, with weights' tag or without")
    return resolve_data_config(pretrained_cfg=registered.to_dict())


@functools.lru_cache(maxsize=1)
def _noise(model_name: str, batch_size: int, reduced: bool) -> torch.Tensor:
    size = (batch_size, *data_config(model_name)["input_size"])
    noise = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(backend.current().torch_device)
    return noise.to(dtype=torch.bfloat16 if reduced else None, memory_format=torch.channels_last)


@functools.lru_cache(maxsize=1)  # what a sweep is through with gives its memory back
def _model(model_name: str, way: str) -> Any:
    import timm

    torch.compiler.reset()  # compiled code of other models counts towards the limit of recompilations
    model: Any = timm.create_model(model_name, pretrained=False)
    if "clip" not in model_name:  # a CLIP tower's head is its projection, which the embedding needs
        model.reset_classifier(0)
    model = model.eval().to(backend.current().torch_device).to(memory_format=torch.channels_last)
    if way.endswith("weights"):
        model = model.to(torch.bfloat16)
    # dynamic=False: a batch of another size is compiled anew, not for all sizes at once.
    return torch.compile(model, dynamic=False) if way.startswith("compiled") else model


@dataclass(frozen=True)
class Decoding:
    """Settings of a bare DALI pipeline.

    Attributes
    ----------
    threads
        DALI's own threads.
    transform
        Resize and crop in the two passes of `curator_dask.decode.dali`; None decodes only.
    hw_decoder_load
        Part of the JPEGs that the GPU's decoder engines get; None leaves DALI's own choice.
    preallocate
        Height and width for which the decoder sets memory aside beforehand; None: none.
    fancy
        Chroma upsampling as libjpeg-turbo's, as the package decodes; it may keep images from the decoder engines.
    """

    threads: int
    transform: TransformSpec | None = None
    hw_decoder_load: float | None = None
    preallocate: tuple[int, int] | None = None
    fancy: bool = True

    def label(self) -> str:
        """The settings in words."""
        words = [
            "decode" if self.transform is None else "decode + transform",
            f"{self.threads} thread{'s' if self.threads > 1 else ''}",
        ]
        if self.hw_decoder_load is not None:
            words.append(f"hw_decoder_load {self.hw_decoder_load:g}")
        if self.preallocate is not None:
            words.append("preallocated {}x{}".format(*self.preallocate))
        if not self.fancy:
            words.append("plain upsampling")
        return ", ".join(words)

    def options(self) -> dict[str, Any]:
        """What DALI's decoder is given; the settings that only a GPU's has are left out on a CPU."""
        chosen: dict[str, Any] = {"jpeg_fancy_upsampling": self.fancy}
        if backend.current().device == "gpu":
            if self.hw_decoder_load is not None:
                chosen["hw_decoder_load"] = self.hw_decoder_load
            if self.preallocate is not None:
                chosen["preallocate_height_hint"], chosen["preallocate_width_hint"] = self.preallocate
        return chosen


def decode(settings: Decoding, folder: Path, images: int, part: int, parts: int) -> int:
    """A bare DALI pipeline over the photographs of a folder, again and again; the pixels are dropped.

    What is fed to it is made before: no plan, no sniffing and no reading counts.

    Parameters
    ----------
    settings
        Of the pipeline.
    folder
        Shards.
    images
        How many to decode at least, in all processes; a pass over all is always finished.
    part, parts
        See `benchmarks.bare`.

    Returns
    -------
    Images done.
    """
    pipeline = _pipeline(settings, folder, part, parts)
    done = 0
    while done * parts < max(1, images):
        with contextlib.suppress(StopIteration):
            while True:
                done += len(pipeline.run()[0])
        pipeline.reset()
    return done


class _Chunks:
    """What a pipeline is fed with, chunk by chunk, all made beforehand."""

    def __init__(self, transform: TransformSpec | None, folder: Path, part: int, parts: int):
        images = [np.frombuffer(view, np.uint8) for view in bare.encoded(folder, 0, part, parts)]
        self.names: list[str] = []
        self._fed: list[tuple[Any, ...]] = []
        sizes = bare.shapes(folder, 0, part, parts)
        for start in range(0, len(images), CHUNK):
            fed: tuple[Any, ...] = (images[start : start + CHUNK],)
            if transform is not None:
                plans = [dali._plan(transform, *size) for size in sizes[start : start + CHUNK]]
                self.names = list(plans[0])
                fed += tuple(np.array([plan[name] for plan in plans], np.float32) for name in self.names)
            self._fed.append(fed)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self._fed)


@functools.lru_cache(maxsize=1)  # what a sweep is through with gives its memory back
def _pipeline(settings: Decoding, folder: Path, part: int, parts: int) -> Any:
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali import types as dali_types

    types: Any = dali_types  # its constants are made at run time
    here = backend.current()
    chunks = _Chunks(settings.transform, folder, part, parts)
    options = settings.options()
    of_pipeline: dict[str, Any] = {
        "batch_size": CHUNK,
        "num_threads": settings.threads,
        "device_id": here.dali_device_id,
        "prefetch_queue_depth": DEPTH,
        "exec_dynamic": True,
    }

    @pipeline_def(**of_pipeline)
    def graph() -> Any:
        fed = fn.external_source(chunks, num_outputs=1 + len(chunks.names), cycle="raise", no_copy=True)
        image = fn.decoders.image(fed[0], device=here.dali_decoder, output_type=types.RGB, **options)
        return image if settings.transform is None else _resized(image, settings.transform, chunks, fed[1:])

    pipeline = graph()
    pipeline.build()
    return pipeline


def _resized(image: Any, transform: TransformSpec, chunks: _Chunks, fed: Sequence[Any]) -> Any:
    """The two passes of `curator_dask.decode.dali`, fed by the pipeline's own source."""
    from nvidia.dali import fn
    from nvidia.dali import types as dali_types

    if transform.pads:
        raise ValueError(f"expected a transform without a border, got {transform}: use a model that crops")
    given = dict(zip(chunks.names, fed, strict=True))
    device = "gpu" if backend.current().device == "gpu" else "cpu"
    interpolation = getattr(dali_types, dali.DALI_MODES[transform.interpolation])
    for which in ("first", "second"):
        sizes = {what: given[f"{which}_{what}"] for what in ("size", "roi_start", "roi_end")}
        image = fn.resize(image, device=device, interp_type=interpolation, antialias=True, **sizes)
    return image
