"""`ImageEmbedder`: adds a column of vectors to a dataset, with any model."""

from __future__ import annotations

import inspect
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypedDict

from curator_dask import backend
from curator_dask.cluster.setup import OpenWorkers
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.orientation import check_exif_column
from curator_dask.decode.spec import DEFAULT_MAX_PIXELS, ImageOptions, check_counts
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError
from curator_dask.fingerprint import code_digest
from curator_dask.frames.columns import embedding_columns
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers import ImageClassifier
from curator_dask.image.embedders.again import steps_again
from curator_dask.image.embedders.covering import check_boxes, check_cover
from curator_dask.image.embedders.partition import EmbedPartition
from curator_dask.models.compiling import CompileSetting, check_compile
from curator_dask.models.encoders import Encoder, EncoderSpec
from curator_dask.models.precision import enough_cosine
from curator_dask.outputs.retrying import retry
from curator_dask.runs.parts import Part
from curator_dask.runs.step import SharingStep
from curator_dask.runs.summary import SaveSummary
from curator_dask.tokens import tokenize

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("curator_dask")


class EmbedderOptions(TypedDict, total=False):
    """The arguments that all embedders take, by name; see `ImageEmbedder`."""

    batch_size: int
    num_threads_per_worker: int
    image_embedding_column: str
    normalize_embeddings: bool
    autocast: bool | float
    use_index_files: bool
    decoder: str
    max_pixels: int
    on_error: str
    compile: CompileSetting
    image_member: str | None
    classifiers: Sequence[ImageClassifier]
    gray16: str
    orientation: str
    decode_scale: str
    cover: str | None


class ImageEmbedder(ABC):
    """Base of all embedders; subclass it to bring your own model.

    A subclass gives `load_embedding_model` and `transform`, and is called with a dataset. It is pickled to the
    workers, so it holds settings (strings, numbers), never a model; each worker loads the model once.

    Parameters
    ----------
    batch_size
        Images a forward pass, at most. Halved when the device runs out of memory; on a CPU no more than 16 for each
        of the worker's threads, which is as fast and takes less memory.
    num_threads_per_worker
        Threads that decode, at most; on a CPU no more than the worker's share of the cores are used.
    image_embedding_column
        Name of the new column, float32 vectors.
    normalize_embeddings
        Divide each vector by its L2 norm.
    autocast
        Run the model in bf16 or fp16 where that is fast, and precise enough: where two pictures have a cosine of
        0.9999 or more to float32 when the model is loaded; a number is another limit. Vectors are float32 all the
        same.
    use_index_files
        Use DALI's ``.idx`` beside a tar where it is there and fits; False scans the tar.
    decoder
        ``"dali"``, or ``"pillow"``: slower, and the reference for what the pixels should be.
    max_pixels
        Images with more are not decoded: their row gets a reason. Default: Pillow's own limit for
        decompression bombs.
    on_error
        ``"null"``: an image that cannot be used leaves a null vector and a reason in ``image_error``.
        ``"raise"``: it stops the run.
    compile
        Use `torch.compile`. ``"auto"``: for CNNs with batch normalisation on a CPU, on a worker that has computed for
        five minutes, if it makes it faster. True: always, from the first batch; that takes half a minute to minutes a
        worker. Where the machine has no C++ compiler, or the model cannot be compiled, it is run as it is.
    image_member
        Of samples with several images, what follows the key and its dot in the name of that to embed, such as
        ``"image.png"``. None: ``key.ext`` if there is one, else the first.
    classifiers
        Heads that score the vectors in the same pass (`curator_dask.image.classifiers`).
    gray16
        Of grey with more than 8 bits a sample, ``"scale"``: the highest 8 of the bits that the file declares, as
        with 16-bit RGB. ``"pillow"``: as Pillow's ``convert("RGB")`` makes it, every sample above 255 white.
    orientation
        ``"stored"``: an image is turned as its file says. ``"exif-column"``: where the file says nothing, as the row's
        ``exif`` does, the text in which img2dataset keeps what it has dropped.
    decode_scale
        ``"exact"``: images are decoded whole. ``"fast"``: on a CPU a JPEG that is at least four times as high and wide
        as what the model sees of it is decoded at a half, a quarter or an eighth of its size: for 12 megapixels
        twice as fast, and the vectors change a little (`docs/speed.md`). Beside a step that sees whole images, such as
        statistics, each image is decoded for both.
    cover
        Column of boxes, as of `DetectionModel`, that are covered with the colour around them before the model sees an
        image (`curator_dask.decode.covering.cover`). Rows whose boxes are null get no vector; none are covered where
        the list is empty. A model that finds them in the same pass comes before; images are then decoded for each.
    """

    #: Part of the fingerprint. The code of the class and of its transform is too, but not what they call: change
    #: this when that changes, so that finished vectors are made anew.
    version: str = ""
    image_member: str | None = None
    classifiers: tuple[ImageClassifier, ...] = ()
    gray16: str = "scale"
    orientation: str = "stored"
    decode_scale: str = "exact"
    cover: str | None = None

    def __init__(
        self,
        batch_size: int = 256,
        num_threads_per_worker: int = 4,
        image_embedding_column: str = "image_embedding",
        normalize_embeddings: bool = True,
        autocast: bool | float = True,
        use_index_files: bool = True,
        *,
        decoder: str = "dali",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        on_error: str = "null",
        compile: CompileSetting = "auto",
        image_member: str | None = None,
        classifiers: Sequence[ImageClassifier] = (),
        gray16: str = "scale",
        orientation: str = "stored",
        decode_scale: str = "exact",
        cover: str | None = None,
    ) -> None:
        check_compile(compile)
        enough_cosine(autocast)
        check_counts(num_threads_per_worker=num_threads_per_worker)
        if not image_embedding_column or image_embedding_column in (URL_COLUMN, ERROR_COLUMN):
            raise ConfigError(f"image_embedding_column={image_embedding_column!r}: this name is not free")
        self.batch_size = batch_size
        self.num_threads_per_worker = num_threads_per_worker
        self.image_embedding_column = image_embedding_column
        self.normalize_embeddings = normalize_embeddings
        self.autocast = autocast
        self.use_index_files = use_index_files
        self.decoder = decoder
        self.max_pixels = max_pixels
        self.on_error = on_error
        self.compile = compile
        # At their defaults these are none of the settings by which earlier files know theirs.
        if image_member is not None:
            self.image_member = image_member
        if classifiers:
            self.classifiers = _checked(classifiers, image_embedding_column)
        if gray16 != "scale":
            self.gray16 = gray16
        if orientation != "stored":
            self.orientation = orientation
        if decode_scale != "exact":
            self.decode_scale = decode_scale
        options = self.options  # which are checked
        if cover is not None:
            check_cover(cover, options)
            self.cover = cover

    @property
    def options(self) -> ImageOptions:
        """How images are read, decoded and put into batches."""
        return ImageOptions.of(self, self.num_threads_per_worker)

    @property
    def transform(self) -> TransformSpec | Callable[[Any], torch.Tensor]:
        """What the model expects of its input.

        A `TransformSpec` (decoded and resized by DALI, normalised on the device), or any function from an
        upright RGB `PIL.Image.Image` to a float32 tensor of one shape (Pillow decodes).
        """
        raise ConfigError(
            f"{type(self).__name__} must have a property 'transform': see ImageEmbedder.transform"
        )

    @abstractmethod
    def load_embedding_model(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """The model, on a worker: a batch (n, 3, H, W) on `device` to vectors (n, dim) there."""

    def encoder_spec(self) -> EncoderSpec:
        """What builds the encoder on a worker; equal specs share one model there."""
        return OwnModelSpec.of(self)

    def __call__(self, dataset: ImageTextPairDataset) -> ImageTextPairDataset:
        """The dataset with the embedding, scores and ``image_error`` as its last columns; nothing is computed yet.

        Raises
        ------
        DatasetError
            The key column or ``__url__`` was dropped from the metadata.
        """
        if self.image_embedding_column == dataset.id_col:
            raise ConfigError(
                f"image_embedding_column={self.image_embedding_column!r} is the column of the keys: give another name"
            )
        check_exif_column(self.options.orientation, dataset.metadata.columns)
        if self.cover is not None:
            check_boxes(dataset, self.cover, self.options)
        there = embedding_columns(dataset.metadata._meta)
        others = [name for name in there if name != self.image_embedding_column]
        embedded = dataset.apply(self._step(dataset.id_col, others, dataset.storage_options))
        for classifier in self.classifiers:
            embedded = classifier(embedded)
        return embedded

    def retry(
        self,
        path: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        shard_options: Mapping[str, Any] | None = None,
        workers: OpenWorkers = nullcontext,
        part: tuple[int, int] | str | None = None,
    ) -> SaveSummary:
        """Try the failed rows of an output again, and only these.

        For reasons that may pass, or that this embedder's settings mend: images above `max_pixels`, a decoder
        that gave up, shards that were given up because their workers died. The vectors that are there are kept, and
        what was made of them. Scores of the new ones are made as the files say, or by `classifiers`; those of a head
        of your own that is not given are left for ``score``, and the summary says so.

        Parameters
        ----------
        path
            What `save_metadata` wrote, with the same model.
        storage_options
            For fsspec, where `path` is a URL.
        shard_options
            The same for the shards; None: `storage_options`.
        workers
            Opens the cluster to work on, once there are failed rows; else it is the one that is there.
        part
            Try those of one part of the shards, as ``(3, 8)`` or ``"3/8"``, counted from 0, beside others.

        Returns
        -------
        SaveSummary
            Of the rows that were tried.

        Raises
        ------
        OutputError
            There is nothing there that this embedder made.
        """
        of_shards = storage_options if shard_options is None else shard_options

        def steps(
            records: Mapping[str, FileRecord], id_col: str, others: Sequence[str]
        ) -> Sequence[SharingStep]:
            step = self._step(id_col, others, of_shards)
            return steps_again(step, self.classifiers, records, storage_options)

        given = (storage_options, of_shards, workers, None, Part.of_given(part))
        return retry(os.fspath(path), self.image_embedding_column, steps, *given)

    @property
    def arguments(self) -> dict[str, Any]:
        """All settings that decide what it makes of an image: heads do not."""
        return {name: value for name, value in vars(self).items() if name != "classifiers"}

    def settings(self) -> dict[str, Any] | None:
        """JSON-able arguments that make this embedder again, stored in its output; None if there are none such."""
        return None

    def _step(
        self, id_col: str, others: Sequence[str], shard_options: Mapping[str, Any] | None
    ) -> EmbedPartition:
        return EmbedPartition(
            encoder=self.encoder_spec(),
            id_col=id_col,
            column=self.image_embedding_column,
            **vars(self.options),
            others=tuple(others),
            storage_options=shard_options,
            settings=json.dumps(self.settings()),
            cover=self.cover,
        )

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({settings})"


@dataclass(frozen=True)
class OwnModelSpec:
    """A user's embedder as an encoder spec; two are equal if class, settings and code are.

    Attributes
    ----------
    embedder
        Loads the model.
    name
        Class, the settings that are its own, its version and a digest of its code.
    token
        Of all settings.
    """

    embedder: ImageEmbedder
    name: str
    token: str

    @classmethod
    def of(cls, embedder: ImageEmbedder) -> OwnModelSpec:
        """Describe an embedder, on the client, where its source can be read."""
        common = inspect.signature(ImageEmbedder.__init__).parameters
        settings = {name: value for name, value in sorted(embedder.__dict__.items()) if name not in common}
        own = [f"{name}={value!r}"[:60] for name, value in settings.items()]
        version = f" version {embedder.version}" if embedder.version else ""
        name = f"{type(embedder).__qualname__}({', '.join(own)}){version} [code {_code_digest(embedder, settings)}]"
        return cls(embedder, name, tokenize(name, embedder.arguments))

    def __hash__(self) -> int:
        return hash(self.token)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnModelSpec) and self.token == other.token

    def __str__(self) -> str:
        return type(self.embedder).__qualname__

    def __dask_tokenize__(self) -> tuple[str, str]:
        return (type(self).__name__, self.token)

    def build(self) -> Encoder:
        """Load the model on this process's device."""
        embedder = self.embedder
        return Encoder(
            embedder.load_embedding_model(backend.current().torch_device),
            embedder.transform,
            name=self.name,
            source=type(embedder).__module__,
            output="model",
            normalize=embedder.normalize_embeddings,
            autocast=embedder.autocast,
            compile=embedder.compile,
        )


def _checked(classifiers: Sequence[ImageClassifier], column: str) -> tuple[ImageClassifier, ...]:
    for each in classifiers:
        if not isinstance(each, ImageClassifier):
            raise ConfigError(f"classifiers: expected classifiers (ImageClassifier), found {each!r}")
        if each.embedding_column != column:
            raise ConfigError(
                f"classifiers: {each.model_name} scores {each.embedding_column!r}, and this embedder makes {column!r}:"
                " give it embedding_column"
            )
    return tuple(classifiers)


def _code_digest(embedder: ImageEmbedder, settings: dict[str, Any]) -> str:
    """Twelve digits of settings, transform and what their classes say, comments and layout left out."""
    classes = [kind for kind in type(embedder).__mro__ if kind not in ImageEmbedder.__mro__]
    transform = embedder.transform
    written: list[Any] = [] if isinstance(transform, TransformSpec) else [transform, type(transform)]
    try:
        hash(transform)
    except TypeError:
        raise ConfigError(
            f"{type(embedder).__qualname__}.transform: expected something hashable, the key of a loader,"
            f" found {type(transform).__qualname__}: make it a function, or a frozen dataclass"
        ) from None
    # A function's settings are around its code, those of another callable are in the object.
    others = [] if isinstance(transform, FunctionType) else [transform]
    return code_digest(settings, [*classes, *written], others)
