"""`DetectionModel`: a model of transformers' that finds things in images, run over a dataset; its boxes as columns."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import ClassVar, Unpack

from curator_dask.errors import ConfigError
from curator_dask.image.classifiers.whole import ReadingOptions, TransformersModel
from curator_dask.image.detection.step import DetectImages
from curator_dask.models.detecting import DetectionSpec
from curator_dask.storage import Options

PREFIX = "detected"


class DetectionModel(TransformersModel):
    """Adds what a model finds in each image, and where, as columns, in the pass that embeds it, or by itself.

    Parameters
    ----------
    model_name
        One of transformers' models for object detection (its ``AutoModelForObjectDetection``: DETR, RT-DETR, D-FINE,
        YOLOS …, and of text PP-OCRv5's and PP-OCRv6's), or for finding what a text names
        (``AutoModelForZeroShotObjectDetection``: OWL-ViT, OWLv2, Grounding DINO): a repository of the hub
        (``"org/repo"``, ``"org/repo@revision"``), or a folder with ``config.json``, ``model.safetensors`` and the
        files of its processor, as ``save_pretrained`` writes them.
    threshold
        Scores of what is found are larger; None: 0.5, with prompts 0.1, as in transformers' pipelines, and of text 0.6,
        as in its post-processing.
    only
        Names of the model's classes that are wanted (``["person", "car"]``); empty: all.
    prompts
        What is looked for, by a model that is asked: ``["a human face", "a license plate"]``. Each is a label.
    prefix
        Before the names of the columns ``boxes``, ``labels``, ``scores``, ``number`` and ``area``, with ``_`` between.
    model_dir
        As for `ClipImageEmbedder`.
    dtype
        Arithmetic: ``"auto"`` is float32 on a CPU, and on a GPU what the checkpoint is in. Else ``"float32"``,
        ``"bfloat16"`` or ``"float16"``.
    **options
        ``batch_size`` (16), ``num_threads_per_worker``, ``use_index_files``, ``decoder``, ``max_pixels``,
        ``on_error``, ``image_member`` and ``gray16`` of `ImageEmbedder`; where an embedder's are the same, it shares
        its images.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    can = "find things in images"
    #: Boxes are to fit the file as any reader shows it, whatever else its row knows.
    without: ClassVar[Mapping[str, str]] = {"decode_scale": "exact", "orientation": "stored"}
    named = "the boxes another (prefix='faces', --prefix faces)"

    def __init__(
        self,
        model_name: str | os.PathLike[str],
        *,
        threshold: float | None = None,
        only: Sequence[str] = (),
        prompts: Sequence[str] = (),
        prefix: str = PREFIX,
        model_dir: str | os.PathLike[str] | None = None,
        dtype: str = "auto",
        **options: Unpack[ReadingOptions],
    ) -> None:
        name = self._check_name(model_name, dtype)
        for option, given in (("only (--only)", only), ("prompts (--prompt)", prompts)):
            texts = given if isinstance(given, list | tuple) else [None]
            if not all(isinstance(each, str) and each.strip() for each in texts) or len({*texts}) < len(
                texts
            ):
                raise ConfigError(f"{option}: expected different texts, found {given!r}")
        if only and prompts:
            raise ConfigError(
                "only (--only) chooses among a model's classes, and prompts (--prompt) take their place: give one"
            )
        is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if threshold is not None and not (is_number and math.isfinite(threshold) and 0 <= threshold < 1):
            raise ConfigError(f"threshold={threshold!r} (--threshold): expected a number from 0 to below 1")
        if not isinstance(prefix, str) or not prefix:
            raise ConfigError(f"prefix={prefix!r} (--prefix): expected what column names begin with")
        self.model_name = name
        self.threshold = None if threshold is None else float(threshold)
        self.only = list(only)
        self.prompts = list(prompts)
        self.prefix = prefix
        self._take(model_dir, dtype, options)

    @property
    def spec(self) -> DetectionSpec:
        """What builds the model on a worker."""
        return DetectionSpec(
            self.model_name,
            self.model_dir,
            tuple(self.prompts),
            self.threshold,
            tuple(self.only),
            self.dtype,
        )

    def step(self, id_col: str, storage_options: Options = None) -> DetectImages:
        """What is done to the rows of a shard."""
        return DetectImages(
            self.spec, self.prefix, id_col, self.options, storage_options, json.dumps(self.settings())
        )
