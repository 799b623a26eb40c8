"""`ClassificationModel`: any image classification model, run over a dataset, and its classes as columns."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from curator_dask.errors import ConfigError
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.image.classifiers.classifying import ClassifyImages
from curator_dask.image.classifiers.whole import ReadingOptions, WholeModel, check_model_name
from curator_dask.models.auto_classifier import AutoClassifier
from curator_dask.models.classes import ACTIVATIONS, check_classes, read_class_names
from curator_dask.models.classification import ClassificationSpec, LogitsSpec, TimmLogits
from curator_dask.models.compiling import CompileSetting, check_compile
from curator_dask.models.hub import is_transformers, names_folder
from curator_dask.models.sources import Sources
from curator_dask.models.timm import TimmSpec, absolute_name
from curator_dask.settings import absolute
from curator_dask.storage import Options

_PATHS = ("/", ".", "~")


class ClassificationModel(WholeModel):
    """Adds the classes that a model sees in each image as columns, in the pass that embeds it, or by itself.

    The model is one with a classifier, fine-tuned for it: of NSFW images, watermarks, documents, ImageNet's classes,
    or your own. (A head on vectors that are there is an `ImageClassifier`.)

    Parameters
    ----------
    model_name
        A name of timm's: of its registry, with or without tag, ``"hf-hub:org/repo"``, or ``"local-dir:/folder"`` with
        ``config.json`` and ``model.safetensors``. Or one of transformers' models for image classification: a
        repository of the hub (``"org/repo"``, ``"org/repo@revision"``), or a folder with ``config.json``,
        ``model.safetensors`` and ``preprocessor_config.json``.
    pretrained, checkpoint_path, model_kwargs
        Of timm's, as for `TimmImageEmbedder`.
    model_dir
        Of transformers', as for `ClipImageEmbedder`.
    prefix
        Before the name of each column.
    classes
        A column for each of its names, with the probability of a class, by its name or number, or with the sum of
        several: ``{"nsfw": "NSFW", "person": ["man", "woman"]}``. float32.
    label
        Also ``label``, the name of the likeliest class, and ``score``, its probability, float32.
    activation
        ``"softmax"``: the classes' shares, which add up to 1. ``"sigmoid"``: a probability of each by itself.
        ``"none"``: the model's outputs as they are. ``"auto"``: as the model says, else shares, or of a model of one
        class its probability.
    class_names
        The names of all classes, or a text file with one in each line, in the place of the model's own: what its
        ``config.json`` says, ImageNet's (of 1000 classes and of timm's larger sets) or ``class_0`` and so on.
    autocast
        Run the model in half precision on a GPU, where the probabilities of two pictures stay within
        `curator_dask.models.precision.MOST_SHIFT`.
    compile
        As for `ImageEmbedder`.
    **options
        ``batch_size``, ``num_threads_per_worker``, ``use_index_files``, ``decoder``, ``max_pixels``, ``on_error``,
        ``image_member``, ``gray16``, ``orientation`` and ``decode_scale`` of `ImageEmbedder`; where an embedder's are
        the same, it shares its images.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    named = "the classes other names (prefix='nsfw_', --prefix nsfw_)"

    def __init__(
        self,
        model_name: str | os.PathLike[str],
        *,
        pretrained: bool = True,
        checkpoint_path: str | os.PathLike[str] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        model_dir: str | os.PathLike[str] | None = None,
        prefix: str = "",
        classes: Mapping[str, str | int | Sequence[str | int]] | None = None,
        label: bool = True,
        activation: str = "auto",
        class_names: Sequence[str] | str | os.PathLike[str] | None = None,
        autocast: bool = True,
        compile: CompileSetting = "auto",
        **options: Unpack[ReadingOptions],
    ) -> None:
        check_model_name(model_name)
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"activation={activation!r} (--activation): expected one of {', '.join(ACTIVATIONS)}"
            )
        if not isinstance(autocast, bool):
            raise ConfigError(f"autocast={autocast!r}: expected True or False")
        check_compile(compile)
        name = os.fspath(model_name)
        is_path = isinstance(model_name, os.PathLike) or name.startswith(_PATHS)
        # A folder may have the name of a model of timm's as well.
        is_path |= names_folder(name) and is_transformers(name)
        # A worker may have another working directory than the client.
        self.model_name = str(absolute(name)) if is_path else absolute_name(name)
        self.pretrained = pretrained
        self.checkpoint_path = None if checkpoint_path is None else str(absolute(checkpoint_path))
        self.model_kwargs = dict(model_kwargs or {})
        self.model_dir = None if model_dir is None else str(absolute(model_dir))
        self._check_source()
        self.prefix = prefix
        self.classes = dict(check_classes(classes or {}))
        self.label = label
        self.activation = activation
        self.class_names = None if class_names is None else read_class_names(class_names)
        self.autocast = autocast
        self.compile = compile
        self.options = self.reading(options)
        self._check_columns()

    @property
    def spec(self) -> ClassificationSpec:
        """What builds the model on a worker."""
        return ClassificationSpec(
            self._model(), tuple(self.classes.items()), self.activation, self.class_names
        )

    def _model(self) -> LogitsSpec:
        if self._is_transformers:
            return AutoClassifier(
                self.model_name, model_dir=self.model_dir, autocast=self.autocast, compile=self.compile
            )
        return TimmLogits(
            TimmSpec.of(
                self.model_name,
                self.pretrained,
                self.checkpoint_path,
                self.model_kwargs,
                output="logits",
                autocast=self.autocast,
                normalize=False,
                compile=self.compile,
            )
        )

    def class_list(self) -> tuple[str, ...]:
        """The names of all classes, in their order: the model is loaded in this process for that."""
        model = ClassificationSpec(self._model(), (), self.activation, self.class_names).build()
        try:
            return model.names
        finally:
            model.close()

    def sources(self) -> Sources | None:
        """The files that decide what it makes; None where they are not all here yet."""
        return Sources.of(self.model_name, self.model_dir, self.checkpoint_path, self.pretrained)

    def step(self, id_col: str, storage_options: Options = None) -> ClassifyImages:
        """What is done to the rows of a shard."""
        return ClassifyImages(
            self.spec,
            self.prefix,
            self.label,
            id_col,
            self.options,
            storage_options,
            json.dumps(self.settings()),
        )

    @property
    def _is_transformers(self) -> bool:
        return is_transformers(self.model_name)

    def _check_source(self) -> None:
        name = self.model_name
        if self._is_transformers:
            given = {
                "pretrained (--no-pretrained)": not self.pretrained,
                "checkpoint_path (--checkpoint)": self.checkpoint_path is not None,
                "model_kwargs (--model-kwargs)": bool(self.model_kwargs),
            }
            wrong = [option for option, is_given in given.items() if is_given]
            if wrong:
                raise ConfigError(
                    f"{name} is transformers' and does not take {', '.join(wrong)}, which timm's models do. A timm"
                    " model of the hub has the prefix hf-hub:, in a folder local-dir:"
                )
        elif self.model_dir is not None:
            raise ConfigError(
                f"model_dir (--model-dir) is for the weights of transformers' models; {name} is timm's"
            )
        elif name.startswith(_PATHS):
            raise ConfigError(
                f"{name} is a path, and its folder is none of transformers': a folder with timm's config.json and"
                f" model.safetensors is named local-dir:{name}"
            )

    def _check_columns(self) -> None:
        if not isinstance(self.prefix, str):
            raise ConfigError(f"prefix={self.prefix!r}: expected text")
        if not (self.label or self.classes):
            raise ConfigError("label=False: nothing is left to be made: give classes")
        names = [self.prefix + name for name in (*(["label", "score"] if self.label else []), *self.classes)]
        taken = [name for name in names if name in (URL_COLUMN, ERROR_COLUMN)]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if taken or twice:
            raise ConfigError(
                f"the name of the column {(taken or twice)[0]!r} is not free: give another to classes, or a prefix"
            )
