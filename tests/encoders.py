"""Tiny text encoders of diffusion models, of random weights, with their tokenizers."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from texts import save_tokenizer, text_config


def _t5():
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=500, **sizes, pad_token_id=0, eos_token_id=2, feed_forward_proj="gated-gelu"
        )
    )


def _clip():
    return transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(**text_config(20), projection_dim=16)
    )


def _gemma():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    numbers = {"vocab_size": 500, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return transformers.Gemma2Model(transformers.Gemma2Config(**sizes, **heads, **numbers))


#: By name: what makes it, and whether its tokenizer puts a token before each text.
KINDS = {"t5": (_t5, False), "clip": (_clip, True), "gemma": (_gemma, True)}


def write_encoder(folder: Path, kind: str, seed: int = 0) -> Path:
    """Save one as a pipeline of diffusers' has it; returns the folder ``text_encoder``."""
    make, begins = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        make().save_pretrained(folder / "text_encoder")
    save_tokenizer(folder / "tokenizer", 20, begins)
    return folder / "text_encoder"


def by_transformers(
    folder: Path, text: str, max_length: int, padded: bool, layer: int = -1
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What transformers makes of one text, as diffusers' pipelines call it; states, and what is pooled."""
    kind = {"t5": transformers.T5EncoderModel, "clip_text_model": transformers.CLIPTextModelWithProjection}
    config = transformers.AutoConfig.from_pretrained(folder)
    model = kind.get(config.model_type, transformers.AutoModel).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder.with_name("tokenizer"))
    how = {"padding": "max_length"} if padded else {}
    made = tokenizer([text], truncation=True, max_length=max_length, return_tensors="pt", **how)
    mask = {} if padded else {"attention_mask": made.attention_mask}
    with torch.no_grad():
        found = model(input_ids=made.input_ids, output_hidden_states=True, **mask)
    states = found.last_hidden_state if layer == -1 else found.hidden_states[layer]
    return states[0], getattr(found, "text_embeds", [None])[0]
