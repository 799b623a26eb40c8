"""Text models in folders of sentence-transformers: a transformer, a pooling of its tokens, and a normalisation.

`SentenceSpec` (small, frozen, hashable) travels; `SentenceSpec.build` makes the `TextEncoder` on the worker.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator_dask.errors import ConfigError, WeightsError
from curator_dask.models.hub import CONFIG, find_folder, read_json
from curator_dask.models.sources import State, files_state
from curator_dask.models.texts import TextEncoder, TextSpec
from curator_dask.models.tokens import Tokens, tokenizer_digest
from curator_dask.models.towers import load_model

MODULES = "modules.json"
_POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
_ARCHITECTURE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")


@dataclass(frozen=True)
class SentenceSpec(TextSpec):
    """Everything that decides what a model of sentence-transformers makes of a text; see `TextSpec`.

    Vectors have length 1 where the folder says so, whatever `normalize`.
    """

    @property
    def source_state(self) -> State | None:
        """Of the files of its folder and of those below; see `curator_dask.cache.SpecCache.refresh`."""
        base = Path(self.model_name)
        return files_state(str(each) for each in (base, *base.rglob("*/")))

    def build(self) -> TextEncoder:
        """Make the encoder on this process's device.

        Raises
        ------
        ConfigError
            The folder's modules are others than a transformer, mean or CLS pooling, and a normalisation.
        WeightsError
            The folder, its weights or its tokenizer cannot be read.
        """
        base = Path(self.model_name)
        where, pooling, normalizes = _read_modules(base)
        folder = find_folder(str(where))
        settings = (
            read_json(base / "sentence_bert_config.json") if _has(base, "sentence_bert_config.json") else {}
        )
        prompts = (
            read_json(base / "config_sentence_transformers.json")
            if _has(base, "config_sentence_transformers.json")
            else {}
        )
        before = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name")) or ""
        model = _load(folder)
        positions = getattr(model.config, "max_position_embeddings", None)
        limit = settings.get("max_seq_length") or _own_limit(folder, positions)
        if not isinstance(limit, int) or (isinstance(positions, int) and limit > positions):
            raise ConfigError(
                f"{base}: max_seq_length is {limit}; expected a number of tokens of at most {positions}, which the"
                " model takes. Change it in sentence_bert_config.json"
            )
        made = model.config
        return TextEncoder(
            _vectors_of(model, pooling),
            Tokens(folder, limit, lowers=bool(settings.get("do_lower_case"))),
            name=" ".join(
                [
                    type(model).__name__,
                    *(f"{name}={getattr(made, name)}" for name in _ARCHITECTURE if hasattr(made, name)),
                ]
            ),
            source=self.model_name,
            output="pooled",
            text={"tokenizer": tokenizer_digest(folder), "pooling": pooling, "prompt": before},
            normalize=self.normalize or normalizes,
            long_text=self.long_text,
            pads_to_limit=False,
            before=before,
        )


def _own_limit(folder: Path, positions: Any) -> Any:
    """Where the folder says nothing: what both the tokenizer and the model take."""
    path = folder / "tokenizer_config.json"
    stated = read_json(path).get("model_max_length") if path.is_file() else None
    return min((each for each in (stated, positions) if isinstance(each, int)), default=None)


def is_sentences(folder: Path) -> bool:
    """Whether a folder is one of sentence-transformers."""
    return (folder / MODULES).is_file()


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _read_modules(base: Path) -> tuple[Path, str, bool]:
    """Where the transformer is, how its tokens are pooled, and whether vectors are normalised."""
    if not is_sentences(base):
        raise WeightsError(
            f"{base}: no {MODULES} is there. Give a folder that every worker sees, as save_pretrained of"
            " sentence-transformers writes it"
        )
    try:
        modules = json.loads((base / MODULES).read_text(encoding="utf-8"))
        parts = [(str(each["type"]).rpartition(".")[2], base / str(each["path"])) for each in modules]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{base / MODULES}: cannot be read: {error!r}. Fetch it again") from error
    kinds = [kind for kind, _ in parts]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ConfigError(
            f"{base / MODULES}: expected Transformer, Pooling, and perhaps Normalize, found"
            f" {', '.join(kinds) or 'none'}. Models of other modules are not supported"
        )
    return parts[0][1], _pooling(parts[1][1] / CONFIG), "Normalize" in kinds


def _pooling(path: Path) -> str:
    settings = read_json(path)
    named = settings.get("pooling_mode")
    modes = [str(named)] if isinstance(named, str) else named if isinstance(named, list) else None
    if modes is None:
        modes = [
            _POOLINGS.get(name, name)
            for name, on in settings.items()
            if name.startswith("pooling_mode_") and on
        ]
    if len(modes) != 1 or modes[0] not in _POOLINGS.values() or settings.get("include_prompt") is False:
        raise ConfigError(
            f"{path}: expected one pooling mode, mean or cls, over all tokens, found {settings}. Models that pool"
            " otherwise are not supported"
        )
    return str(modes[0])


def _load(folder: Path) -> Any:
    """The transformer in float32 on the CPU, every tensor of it from the folder."""
    import transformers

    model, found = load_model(transformers.AutoModel, folder)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # tokens are pooled by another rule; many files do not have its weights
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise WeightsError(
            f"{folder}: the weights lack {len(missing)} tensors of {type(model).__name__}: {', '.join(missing[:3])}."
            " They must be those of the config.json beside them"
        )
    return model


def _vectors_of(model: Any, pooling: str) -> Any:
    """The transformer as a module that gives vectors (n, dim) alone."""
    import torch

    class Vectors(torch.nn.Module):
        # Not named in its code: a class is collected late, and all that its functions hold.
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            tokens: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            if pooling == "cls":
                return tokens[:, 0]
            weights = mask.unsqueeze(-1).to(tokens.dtype)
            return (tokens * weights).sum(dim=1) / weights.sum(dim=1)

    return Vectors(model)
