"""What the machine can do without this package's own code: bare DALI, a bare model.

All functions run in the processes of a `benchmarks.harness.Team`, which is why they end in ``part, parts``: each
process takes its share of the images. What is slow to make (pipelines, models, the images' bytes) is made in the
first call, the warm-up, and kept.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curator_dask import backend
from curator_dask.decode.loader import Loader
from curator_dask.decode.spec import LoaderSpec
from curator_dask.decode.transforms import TransformSpec
from curator_dask.image.embedders import ImageEmbedder
from curator_dask.models.compiling import has_batch_norm
from curator_dask.models.folding import fold_batch_norms, fold_padding
from curator_dask.webdataset.reader import ShardReader

TRANSFORM = TransformSpec((224, 224), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), crop_pct=0.875)
"""That of EfficientNet-Lite0, and for the benchmarks without a model."""

CHUNK = 64  # images that bare DALI is given at a time
DECODE_KINDS = {
    "crop region": "decode and one resize of the crop's region, all in DALI",
    "usual": "decode, resize of the shorter edge and centred crop, all in DALI",
    "torch": "decode in DALI, then torch's resize of the whole image in as many threads and a crop",
    "whole": "decode alone",
}
"""Bare ways to decode."""


def decode_kinds(device: str) -> list[str]:
    """Those of `DECODE_KINDS` that are of use on a device: on a GPU the pixels stay in DALI."""
    return [kind for kind in DECODE_KINDS if device == "cpu" or kind != "torch"]


class NullEmbedder(ImageEmbedder):
    """Embeds an image as its mean colour: what it costs is decoding and the framework."""

    transform = TRANSFORM

    def load_embedding_model(self, device: torch.device) -> torch.nn.Module:
        """The model that does nothing much."""
        return MeanColour().to(device)


class SecondNullEmbedder(NullEmbedder):
    """Another that does nothing much, of a transform that cannot share the first one's resize."""

    transform = replace(TRANSFORM, crop_pct=1.0)


class MeanColour(torch.nn.Module):
    """Mean over the pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """From (n, 3, H, W) to (n, 3)."""
        return images.mean(dim=(2, 3))


@functools.cache
def encoded(folder: Path, limit: int, part: int, parts: int) -> list[memoryview]:
    """The bytes of every image, or of the first `limit`, as views of the memory-mapped tars."""
    views: list[memoryview] = []
    for path in sorted(folder.glob("*.tar")):
        with ShardReader(str(path)) as reader:  # the views outlive it
            members = [sample.image() for sample in reader.index.samples]
            views += [reader.read(member) for member in members if member is not None]
    views = views[:limit] if limit else views
    for view in views:
        sum(view[::4096])  # into the page cache and this process's page table
    return views[part::parts]


@functools.cache
def shapes(folder: Path, limit: int, part: int, parts: int) -> list[tuple[int, int]]:
    """Height and width of every image."""
    from curator_dask.decode.sniff import sniff

    headers = [sniff(view, 10**9) for view in encoded(folder, limit, part, parts)]
    return [(header.height, header.width) for header in headers]


def load(spec: LoaderSpec, folder: Path, limit: int, part: int, parts: int) -> int:
    """The package's own `Loader`; the pixels are dropped."""
    done = 0
    for batch in _loader(spec).load(enumerate(encoded(folder, limit, part, parts))):
        assert not batch.errors, batch.errors
        done += len(batch.positions)
    return done


@functools.cache
def _loader(spec: LoaderSpec) -> Loader:
    return Loader(spec)


def decode(
    kind: str, transform: TransformSpec, threads: int, folder: Path, limit: int, part: int, parts: int
) -> int:
    """A bare DALI pipeline; the pixels are dropped.

    `kind` is one of `DECODE_KINDS`.
    """
    pipeline = _pipeline(kind, transform, threads, folder, limit, part, parts)
    done = 0
    with contextlib.suppress(StopIteration):
        while True:
            (images,) = pipeline.run()
            if kind == "torch":
                arrays = [np.asarray(images[number]) for number in range(len(images))]
                list(_pool(threads).map(functools.partial(_resize, transform), arrays))
            done += len(images)
    pipeline.reset()
    return done


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


def _resize(transform: TransformSpec, pixels: np.ndarray) -> torch.Tensor:
    rows, columns = transform.geometry(*pixels.shape[:2])
    whole = torch.nn.functional.interpolate(
        torch.from_numpy(pixels)[None].permute(0, 3, 1, 2),
        size=(rows.resized, columns.resized),
        mode=transform.interpolation,
        antialias=True,
    )
    kept = whole[:, :, rows.start : rows.start + rows.kept, columns.start : columns.start + columns.kept]
    return kept.permute(0, 2, 3, 1).contiguous()


class _Source:
    """What a pipeline is fed with, chunk by chunk."""

    def __init__(self, kind: str, transform: TransformSpec, views: list[memoryview], sizes: list):
        self.kind, self.transform, self.views, self.sizes = kind, transform, views, sizes

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(self.views), CHUNK):
            views = self.views[start : start + CHUNK]
            fed: tuple[Any, ...] = ([np.frombuffer(view, np.uint8) for view in views],)
            if self.kind == "crop region":
                plans = [self.transform.geometry(*size) for size in self.sizes[start : start + CHUNK]]
                regions = [[axis.region for axis in plan] for plan in plans]
                fed += (np.array([[axis[0] for axis in region] for region in regions], np.float32),)
                fed += (np.array([[axis[1] for axis in region] for region in regions], np.float32),)
            yield fed


@functools.cache
def _pipeline(
    kind: str, transform: TransformSpec, threads: int, folder: Path, limit: int, part: int, parts: int
) -> Any:
    from nvidia import dali

    # Its operators and constants are made at run time.
    fn: Any = dali.fn
    types: Any = dali.types
    pipeline_def: Any = dali.pipeline_def
    here = backend.current()
    on_gpu = here.device == "gpu"
    source = _Source(kind, transform, encoded(folder, limit, part, parts), shapes(folder, limit, part, parts))

    @pipeline_def(
        batch_size=CHUNK, num_threads=threads, device_id=here.dali_device_id, prefetch_queue_depth=2
    )
    def graph() -> Any:
        fed = fn.external_source(
            source, num_outputs=3 if kind == "crop region" else 1, cycle="raise", no_copy=True
        )
        image = fn.decoders.image(fed[0], device=here.dali_decoder, output_type=types.RGB)
        cubic = {"interp_type": types.INTERP_CUBIC, "antialias": True}
        if kind == "usual":
            image = fn.resize(image, resize_shorter=transform.scale_size[0], **cubic)
            height, width = transform.size
            image = fn.crop(image, crop_h=height, crop_w=width, device="gpu" if on_gpu else "cpu")
        elif kind == "crop region":
            height, width = transform.size
            region = {"roi_start": fed[1], "roi_end": fed[2]}
            image = fn.resize(image, resize_y=height, resize_x=width, **region, **cubic)
        return image

    pipeline = graph()
    pipeline.build()
    return pipeline


def forward(
    model_name: str | None,
    pretrained: bool,
    autocast: bool,
    batch_size: int,
    images: int,
    part: int,
    parts: int,
    *,
    compiled: bool = False,
    folded: bool = False,
) -> int:
    """A bare timm model on one batch of noise that stays on the device, `images` of it in all processes.

    None is the null model, which has the normalisation of the pixels in it. `folded` and `compiled` do to it what the
    package does.
    """
    here = backend.current()
    device = here.torch_device
    model, pixels, fine = _model(model_name, pretrained, batch_size, compiled, folded)
    dtype = here.autocast_dtype(fine) if autocast else None
    batches = max(1, images // parts // batch_size)
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype, enabled=dtype is not None),
        frozen() if compiled else contextlib.nullcontext(),
    ):
        for _ in range(batches):
            vectors = model(pixels)
        vectors.float().cpu()  # waits for the device
    return batches * batch_size


def frozen() -> Any:
    """A context in which what is compiled has its weights as constants, as the package's own has."""
    from torch._inductor import config

    return config.patch(freezing=True)


@functools.cache
def _model(
    model_name: str | None, pretrained: bool, batch_size: int, compiled: bool, folded: bool
) -> tuple[Any, torch.Tensor, bool]:
    """The model, a batch, and whether bf16 is too coarse for it."""
    import timm
    from timm.data import resolve_data_config

    device = backend.current().torch_device
    if model_name is None:
        noise = torch.randint(0, 256, (batch_size, *TRANSFORM.size, 3), dtype=torch.uint8, device=device)
        return (lambda pixels: MeanColour()(TRANSFORM.normalize(pixels))), noise, False
    model: Any = timm.create_model(model_name, pretrained=pretrained)
    if "clip" not in model_name:  # a CLIP tower's head is its projection, which the embedding needs
        model.reset_classifier(0)
    size = resolve_data_config(pretrained_cfg=model.pretrained_cfg)["input_size"]
    pixels = torch.randn((batch_size, *size), generator=torch.Generator().manual_seed(0)).to(device)
    fine = has_batch_norm(model)
    if folded:
        fold_batch_norms(model.eval(), pixels[:1])
        fold_padding(model, pixels[:1])
    model = model.eval().to(device).to(memory_format=torch.channels_last)
    if compiled:
        model = torch.compile(model, dynamic=False)
    return model, pixels.to(memory_format=torch.channels_last), fine
