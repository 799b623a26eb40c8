"""`ClipImageEmbedder`: embeds with CLIP or SigLIP as transformers has them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Unpack

from curator_dask.errors import ConfigError
from curator_dask.image.embedders.base import EmbedderOptions, ImageEmbedder
from curator_dask.models.clip import ClipSpec
from curator_dask.models.encoders import EncoderSpec
from curator_dask.models.hub import CLIP_L14, names_folder
from curator_dask.settings import absolute

if TYPE_CHECKING:
    import torch


class ClipImageEmbedder(ImageEmbedder):
    """Embeds images with the vision tower of a CLIP or SigLIP, and with its own preprocessing.

    Parameters
    ----------
    model_name
        A repository of the hub (``"org/repo"``, ``"org/repo@revision"``), or a folder with ``config.json``,
        ``model.safetensors`` and ``preprocessor_config.json`` as transformers writes them. Default: OpenAI's
        CLIP ViT-L/14, of which the revision and the files' digests are fixed; vectors of 768.
    model_dir
        Folder with the weights, or for them: what it lacks is fetched into ``model_dir/org/repo`` once a machine,
        verified, and used without any network from then on. None: huggingface_hub's own cache.
    *common, **options
        See `TimmImageEmbedder`.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] = CLIP_L14,
        model_dir: str | os.PathLike[str] | None = None,
        *common: Any,
        **options: Unpack[EmbedderOptions],
    ) -> None:
        super().__init__(*common, **options)
        if not isinstance(model_name, str | os.PathLike) or not os.fspath(model_name):
            raise ConfigError(f"model_name={model_name!r}: expected a folder, or a repository as org/repo")
        name = os.fspath(model_name)
        is_folder = isinstance(model_name, os.PathLike) or names_folder(name)
        # A worker may have another working directory than the client.
        self.model_name = str(absolute(name)) if is_folder else name
        self.model_dir = None if model_dir is None else str(absolute(model_dir))

    def load_embedding_model(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """The vision tower on `device`."""
        model = self.encoder_spec().build().model
        assert model is not None
        return model

    def settings(self) -> dict[str, Any]:
        """The arguments of this class, and its name under ``"embedder"``."""
        return {"embedder": type(self).__name__, **self.arguments}

    def encoder_spec(self) -> EncoderSpec:
        """Model and weights; the transform follows from them on the worker."""
        return ClipSpec(
            model_name=self.model_name,
            model_dir=self.model_dir,
            autocast=self.autocast,
            normalize=self.normalize_embeddings,
            compile=self.compile,
        )
