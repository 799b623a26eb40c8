"""`TimmImageEmbedder`: embeds with any model that timm can create."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Unpack

from curator_dask.errors import ConfigError
from curator_dask.image.embedders.base import EmbedderOptions, ImageEmbedder
from curator_dask.models.encoders import EncoderSpec
from curator_dask.models.timm import OUTPUTS, TimmSpec, absolute_name
from curator_dask.settings import absolute

if TYPE_CHECKING:
    import torch


class TimmImageEmbedder(ImageEmbedder):
    """Embeds images with a timm model and timm's own transform for its weights.

    Parameters
    ----------
    model_name
        Any name that `timm.create_model` takes: a registry name with or without tag
        (``"vit_large_patch14_clip_quickgelu_224.openai"``), ``"hf-hub:org/repo"``, or ``"local-dir:/folder"``
        with ``config.json`` and ``model.safetensors``, which needs no network.
    pretrained
        Load the weights that belong to the name; False gives random ones.
    *common
        ``batch_size``, ``num_threads_per_worker``, ``image_embedding_column``, ``normalize_embeddings``, ``autocast``
        and ``use_index_files`` of `ImageEmbedder`, in this order, or by name.
    output
        ``"auto"``: the projected embedding of a contrastive tower (CLIP, SigLIP and their like), the pooled
        features of anything else. ``"pooled"``, ``"projected"`` and ``"logits"`` choose.
    checkpoint_path
        State dict to load over the model; every worker must see the file.
    model_kwargs
        Further arguments of `timm.create_model`, such as ``{"img_size": 336}``.
    **options
        The others of `ImageEmbedder`: ``decoder``, ``max_pixels``, ``on_error``, ``compile``, ``image_member``,
        ``gray16``, ``orientation``, ``decode_scale``, ``cover``.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    def __init__(
        self,
        model_name: str,
        pretrained: bool = True,
        *common: Any,
        output: str = "auto",
        checkpoint_path: str | os.PathLike[str] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[EmbedderOptions],
    ) -> None:
        super().__init__(*common, **options)
        if output not in OUTPUTS:
            raise ConfigError(f"output={output!r}: expected one of {', '.join(OUTPUTS)}")
        if not isinstance(model_name, str) or not model_name:
            raise ConfigError(f"model_name={model_name!r}: expected the name of a timm model")
        self.model_name = model_name
        self.pretrained = pretrained
        self.output = output
        self.checkpoint_path = checkpoint_path
        self.model_kwargs = dict(model_kwargs or {})

    def load_embedding_model(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """The timm model on `device`, with its head settled by `output`."""
        model = self.encoder_spec().build().model
        assert model is not None
        return model

    def settings(self) -> dict[str, Any] | None:
        """The arguments of this class; None where `model_kwargs` has what JSON has not."""
        made = {**self.arguments, "model_name": absolute_name(self.model_name)}
        if self.checkpoint_path is not None:
            made["checkpoint_path"] = str(absolute(self.checkpoint_path))
        try:
            json.dumps(made)
        except TypeError:
            return None
        return made

    def encoder_spec(self) -> EncoderSpec:
        """Model, weights and output; the transform follows from them on the worker."""
        return TimmSpec.of(
            self.model_name,
            self.pretrained,
            self.checkpoint_path,
            self.model_kwargs,
            output=self.output,
            autocast=self.autocast,
            normalize=self.normalize_embeddings,
            compile=self.compile,
        )
