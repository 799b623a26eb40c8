"""The text tower of a CLIP or SigLIP as transformers has them.

`ClipTextSpec` (small, frozen, hashable) travels; `ClipTextSpec.build` makes the `TextEncoder` on the worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator_dask.models.hub import CLIP_L14, CONFIG, find_beside, find_folder, read_json
from curator_dask.models.texts import TextEncoder, TextSpec
from curator_dask.models.tokens import TOKENIZERS, Tokens, tokenizer_digest
from curator_dask.models.towers import CLIP_TYPES, check_type, described, load_tower, vectors_of
from curator_dask.models.weights import state_digest


@dataclass(frozen=True)
class ClipTextSpec(TextSpec):
    """Everything that decides what a CLIP or SigLIP makes of a text; see `TextSpec`."""

    model_name: str = CLIP_L14

    def fetch(self) -> Path:
        """The folder with weights and tokenizer; fetched if it is nowhere, without loading anything.

        Raises
        ------
        ConfigError
            The model is neither CLIP nor SigLIP, or has no text tower.
        WeightsError
            The weights cannot be had.
        """
        folder = find_folder(
            self.model_name, self.model_dir, lambda config: check_type(config, self.model_name, "text")
        )
        find_beside(self.model_name, self.model_dir, folder, TOKENIZERS)
        return folder

    def build(self) -> TextEncoder:
        """Make the encoder on this process's device: the projected embedding of CLIP, the pooled one of SigLIP.

        Raises
        ------
        ConfigError
            The model is neither CLIP nor SigLIP, or has no text tower.
        WeightsError
            The weights or the tokenizer cannot be had, or do not fit the configuration.
        """
        folder = self.fetch()
        config = read_json(folder / CONFIG)
        check_type(config, str(folder), "text")
        is_clip = config["model_type"] in CLIP_TYPES
        output = "projected" if is_clip else "pooled"
        images = None
        if "_" not in config["model_type"]:
            # Loaded to be known, and let go: a column of image vectors belongs to the text if its tower is this one.
            vision = load_tower(folder, is_clip, "vision")
            images = {
                "model": described(vision),
                "weights": state_digest(vectors_of(vision)),
                "output": output,
            }
            del vision
        tower = load_tower(folder, is_clip, "text")
        return TextEncoder(
            _vectors_of(tower, is_clip),
            Tokens(folder, tower.config.max_position_embeddings),
            name=described(tower),
            source=self.model_name,
            output=output,
            text={"tokenizer": tokenizer_digest(folder), "eos_token_id": tower.config.eos_token_id},
            normalize=self.normalize,
            long_text=self.long_text,
            # SigLIP was trained on padded texts, without a mask; CLIP sees nothing behind the end of a text.
            pads_to_limit=not is_clip,
            images=images,
        )


def _vectors_of(tower: Any, is_clip: bool) -> Any:
    """The tower as a module that gives vectors (n, dim) alone."""
    import torch

    class Vectors(torch.nn.Module):
        # Not named in its code: a class is collected late, and all that its functions hold.
        def __init__(self, tower: Any) -> None:
            super().__init__()
            self.tower = tower

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            vectors: torch.Tensor = (
                self.tower(input_ids=ids, attention_mask=mask).text_embeds
                if is_clip
                else self.tower(input_ids=ids).pooler_output
            )
            return vectors

    return Vectors(tower)
