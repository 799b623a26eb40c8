"""CLIP and SigLIP as transformers has them: the vision tower, its projection and its own preprocessing.

`ClipSpec` (small, frozen, hashable) travels; `ClipSpec.build` makes the `Encoder` on the worker, from a folder
that `curator_dask.models.hub` finds or fetches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from curator_dask.errors import ConfigError
from curator_dask.models.encoders import Encoder, ModelSpec
from curator_dask.models.hub import CLIP_L14, CONFIG, PROCESSORS, find_folder, read_json
from curator_dask.models.processors import read_transform
from curator_dask.models.sources import OfTransformers
from curator_dask.models.towers import CLIP_TYPES, check_type, described, load_tower, vectors_of


@dataclass(frozen=True)
class ClipSpec(OfTransformers, ModelSpec):
    """Everything that decides what a CLIP or SigLIP makes of an image.

    Attributes
    ----------
    model_name
        A folder with ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` as transformers
        writes them, or a repository of the hub: ``"org/repo"``, ``"org/repo@revision"``.
    model_dir
        See `curator_dask.models.hub.find_folder`.
    autocast, normalize, compile
        See `Encoder`.
    """

    model_name: str = CLIP_L14
    model_dir: str | None = None

    def fetch(self) -> Path:
        """The folder with the weights; fetched if it is nowhere, without loading anything.

        Raises
        ------
        ConfigError
            The model is neither CLIP nor SigLIP.
        WeightsError
            The weights cannot be had.
        """
        return find_folder(
            self.model_name, self.model_dir, lambda config: check_type(config, self.model_name)
        )

    def build(self) -> Encoder:
        """Make the encoder on this process's device: the projected embedding of CLIP, the pooled one of SigLIP.

        Raises
        ------
        ConfigError
            The model is neither CLIP nor SigLIP, or its preprocessing is one that a `TransformSpec` cannot express.
        WeightsError
            The weights cannot be had, or do not fit the configuration.
        """
        folder = self.fetch()
        config = read_json(folder / CONFIG)
        check_type(config, str(folder))
        is_clip = config["model_type"] in CLIP_TYPES
        transform = read_transform(folder, "CLIP" if is_clip else "Siglip")
        tower = load_tower(folder, is_clip, "vision")
        made = tower.config
        expected = made.image_size if isinstance(made.image_size, list | tuple) else (made.image_size,) * 2
        if transform.size != tuple(expected):
            raise ConfigError(
                f"{folder}: its preprocessing makes images of {list(transform.size)} pixels, its model takes"
                f" {list(expected)}: set crop_size or size in {PROCESSORS[0]} to what the model takes"
            )
        return Encoder(
            vectors_of(tower),
            transform,
            name=described(tower),
            source=self.model_name,
            output="projected" if is_clip else "pooled",
            normalize=self.normalize,
            autocast=self.autocast,
            compile=self.compile,
        )
