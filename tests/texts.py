"""Captions in eight languages, and tiny folders of CLIP and SigLIP with their tokenizers, of random weights."""

from __future__ import annotations

import random

import tokenizers
import torch
import transformers

_SENTENCES = [
    "A cat sleeps on a red sofa beside the window, and it does not care about you.",
    "Eine Katze schläft auf dem Sofa; draußen fällt grüner Regen über die Straße.",
    "Un chat dort sur le canapé, près de la fenêtre où l'été s'achève déjà.",
    "El gato duerme en el sofá junto a la ventana, ¿quién sabe por qué?",
    "Кошка спит на красном диване у окна и не думает ни о чём.",  # noqa: RUF001
    "猫が窓のそばの赤いソファで眠っている。外は雨だ。",
    "一只猫睡在窗边的红色沙发上,外面下着雨。",
    "قطة نائمة على أريكة حمراء بجانب النافذة",
]


def captions(count: int, most: int = 300) -> list[str]:
    """Captions of 0 to `most` words, of all these languages, the same in each call."""
    draw = random.Random(7)
    found = []
    for number in range(count):
        words = _SENTENCES[number % len(_SENTENCES)].split()
        length = draw.choice([0, 1, 2, 5, 9, 20, 77, most])
        found.append(" ".join(draw.choice(words) for _ in range(length)))
    return found


def save_tokenizer(folder, limit: int, is_clip: bool) -> None:
    """A byte-level BPE; with a token before each text, or the one behind it alone."""
    model = tokenizers.models.BPE(unk_token="<unk>", byte_fallback=False)
    trained = tokenizers.Tokenizer(model)
    trained.normalizer = tokenizers.normalizers.Lowercase()
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    special = ["<pad>", "<start>", "<end>", "<unk>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet
    )
    trained.train_from_iterator(_SENTENCES, trainer)
    single = "<start> $A <end>" if is_clip else "$A <end>"
    trained.post_processor = tokenizers.processors.TemplateProcessing(
        single=single, special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        # CLIP pads with the end of a text, of which it takes the first; SigLIP takes the last of all.
        pad_token="<end>",
        model_max_length=limit,
    ).save_pretrained(folder)


def text_config(limit: int) -> dict:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    numbers = {"vocab_size": 500, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return {**sizes, **numbers, "max_position_embeddings": limit}


VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


def make_pair(folder, kind: str, seed: int = 1, eos: int = 2, limit: int = 20):
    """A CLIP or a SigLIP of both towers, with its processors; the model, in eval mode."""
    torch.manual_seed(seed)
    text = {**text_config(limit), "eos_token_id": eos}
    model: torch.nn.Module
    if kind == "clip":
        model = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
        )
        transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    else:
        model = transformers.SiglipModel(
            transformers.SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=VISION)
        )
        transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    with torch.no_grad():  # else two captions have all but one vector
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    model.save_pretrained(folder)
    save_tokenizer(folder, limit, kind == "clip")
    return model.eval()


def transformers_own(model, folder, texts, kind: str, limit: int = 20):
    """Unit vectors of texts as a user of transformers computes them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = True if kind == "clip" else "max_length"
    found = []
    for start in range(0, len(texts), 25):
        batch = texts[start : start + 25]
        inputs = tokenizer(batch, padding=padding, truncation=True, max_length=limit, return_tensors="pt")
        if kind != "clip":
            inputs = {"input_ids": inputs["input_ids"]}
        inputs = {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            found.append(model.get_text_features(**inputs).pooler_output)
    return torch.nn.functional.normalize(torch.cat(found), dim=-1).numpy()
