"""`ImageEmbeddingStage`: from decoded images to vectors, by CLIP or SigLIP."""

from __future__ import annotations

import itertools
import logging
import os
import time
from typing import Any

import numpy as np

from curator_dask.cache import ENCODERS
from curator_dask.decode.resize import BatchResize
from curator_dask.decode.spec import check_counts
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError
from curator_dask.image.embedders import ClipImageEmbedder
from curator_dask.models.clip import ClipSpec
from curator_dask.models.compiling import CompileSetting
from curator_dask.models.encoders import Encoder, EncoderInfo, EncoderSpec
from curator_dask.models.hub import CLIP_L14
from curator_dask.runs.fit import refresh_model
from curator_dask.stages.base import Names, ProcessingStage
from curator_dask.tasks import EMBEDDING, ImageBatch, ImageObject, set_vector, vector_of

logger = logging.getLogger("curator_dask")


class ImageEmbeddingStage(ProcessingStage[ImageBatch, ImageBatch]):
    """Embeds images with OpenAI's CLIP ViT-L/14: its vision tower and projection, 768 values of length 1.

    Images of any size are resized by the model's own preprocessing on the device they are on. Images with an
    ``error`` pass through.

    Parameters
    ----------
    model_dir
        Folder for the weights. If they are there (in it, or in ``openai/clip-vit-large-patch14`` below it) they are
        used and no network is; else they are downloaded, once a machine. None: huggingface_hub's cache.
    num_gpus_per_worker
        See `curator_dask.stages.base.Stage`.
    model_inference_batch_size
        Images a forward pass, at most. Halved when the device runs out of memory; on a CPU no more than 16 for each
        of the worker's threads, which is as fast and takes less memory.
    verbose
        Log batches and rates.
    remove_image_data
        Set ``image_data`` to None as soon as it is not needed any more.
    model_name
        Another CLIP or SigLIP: a folder as transformers saves it, or a hub id ``org/repo``.
    autocast
        Run the model in bf16 or fp16 where that is fast and precise enough; vectors are float32 all the same.
    compile
        See `curator_dask.image.embedders.base.ImageEmbedder`.
    embedding_field
        Where the vector goes. For a second model in the same pipeline another than ``"embedding"``: a field of the
        image's metadata, and the name of its column.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    name = "image_embedding"
    thread_safe = True
    #: The reader's. What ``"pillow"`` has decoded is resized by Pillow, too.
    decoder: str = "dali"

    def __init__(
        self,
        model_dir: str | os.PathLike[str] | None = None,
        num_gpus_per_worker: float = 0.25,
        model_inference_batch_size: int = 32,
        verbose: bool = False,
        remove_image_data: bool = False,
        *,
        model_name: str = CLIP_L14,
        autocast: bool | float = True,
        compile: CompileSetting = "auto",
        embedding_field: str = EMBEDDING,
    ) -> None:
        size = model_inference_batch_size
        check_counts(model_inference_batch_size=size)
        same = ClipImageEmbedder(model_name, model_dir, batch_size=size, autocast=autocast, compile=compile)
        self.model_dir = same.model_dir
        self.num_gpus_per_worker = num_gpus_per_worker
        self.model_inference_batch_size = size
        self.verbose = verbose
        self.remove_image_data = remove_image_data
        self.model_name = same.model_name
        self.autocast = autocast
        self.compile = compile
        if not isinstance(embedding_field, str) or not embedding_field:
            raise ConfigError(f"embedding_field={embedding_field!r}: expected a name")
        self.embedding_field = embedding_field
        self._resize: BatchResize | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_resize": None}  # of a stage that was tried by hand; its threads cannot travel

    def inputs(self) -> Names:
        """Images, decoded."""
        return ["data"], ["image_data"]

    def outputs(self) -> Names:
        """Their vectors."""
        return ["data"], [self.embedding_field]

    def removes(self) -> list[str]:
        """The pixels, if they are not to be kept."""
        return ["image_data"] if self.remove_image_data else []

    def encoder_spec(self) -> EncoderSpec:
        """What builds the encoder on a worker; the dataset API's embedders share it if theirs is equal."""
        return ClipSpec(self.model_name, self.model_dir, autocast=self.autocast, compile=self.compile)

    def describe_model(self) -> EncoderInfo:
        """Load the model on this worker, where it then stays, and say what it is."""
        spec = self.encoder_spec()
        refresh_model(spec)
        with ENCODERS.lease(spec, spec.build) as encoder:
            info: EncoderInfo = encoder.info
        return info

    def setup_on_node(self, node_info: Any = None, worker_metadata: Any = None) -> None:
        """Have the weights on this machine.

        Raises
        ------
        WeightsError
            They cannot be had.
        """
        fetch = getattr(self.encoder_spec(), "fetch", None)
        if fetch is not None:
            fetch()

    def setup(self, worker_metadata: Any = None) -> None:
        """Load the model, once a worker."""
        spec = self.encoder_spec()
        refresh_model(spec)
        with ENCODERS.lease(spec, spec.build) as encoder:
            self._resize = _resizer(encoder, exact=self.decoder == "pillow")

    def process(self, task: ImageBatch) -> ImageBatch:
        """Set ``embedding`` of each image, or its ``error``."""
        if self._resize is None:
            self.setup()
        assert self._resize is not None
        started = time.monotonic()
        # An image that has its vector already is not embedded again.
        lacking = [image for image in task.data if vector_of(image, self.embedding_field) is None]
        images = [image for image in lacking if _can_be_embedded(image)]
        # Batches of one size: a last one of a few images would leave a GPU idle.
        count = -(-len(images) // self.model_inference_batch_size)
        ends = [len(images) * number // max(count, 1) for number in range(count + 1)]
        parts = [images[start:stop] for start, stop in itertools.pairwise(ends)]
        spec = self.encoder_spec()
        with ENCODERS.lease(spec, spec.build) as encoder:
            # One part ahead: while the model works on one the next is resized.
            waiting: list[Any] = []
            for part in [*parts, None]:
                if part is not None:
                    waiting.append((part, self._resize.start([image.image_data for image in part])))
                if len(waiting) > (part is not None):
                    before, finish = waiting.pop(0)
                    self._embed(encoder, before, *finish())
        if self.verbose:
            seconds = max(time.monotonic() - started, 1e-9)
            logger.info(
                "%s: %d images embedded in %.2f s, %.1f images/s",
                task.task_id,
                len(images),
                seconds,
                len(images) / seconds,
            )
        return task

    def teardown(self) -> None:
        """End the threads that resize; the model stays in the worker's cache."""
        if self._resize is not None:
            self._resize.close()
            self._resize = None

    def _embed(self, encoder: Encoder, images: list[ImageObject], pixels: Any, bad: dict[int, str]) -> None:
        vectors = encoder(pixels)
        good = [image for number, image in enumerate(images) if number not in bad]
        for number, reason in bad.items():
            images[number].error = reason
        for image, vector, finite in zip(good, vectors, np.isfinite(vectors).all(axis=1), strict=True):
            if not finite and self.embedding_field == EMBEDDING:
                image.error = encoder.not_finite
            elif not finite:  # it costs this vector alone
                image.errors[self.embedding_field] = encoder.not_finite
            else:
                set_vector(image, self.embedding_field, vector)
        if self.remove_image_data:
            for image in images:
                image.image_data = None


def _can_be_embedded(image: ImageObject) -> bool:
    if image.error is None and image.image_data is None:
        image.error = "missing: there was no image_data when the image came to be embedded"
    return image.error is None


def _resizer(encoder: Encoder, exact: bool) -> BatchResize:
    import torch

    if not isinstance(encoder.transform, TransformSpec):
        raise ConfigError(
            f"{encoder.info.source}: expected a model whose transform is a TransformSpec; a function of its own is"
            " for ImageEmbedder only"
        )
    return BatchResize(encoder.transform, torch.get_num_threads(), exact)
