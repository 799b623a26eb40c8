"""Tiny models that are asked about images, of random weights, and what transformers gives each image by hand."""

from __future__ import annotations

import numpy as np
import tokenizers
import torch
import transformers
from captioners import _TEXT, _VISION, CLS, IMAGE, KINDS, SEP, SIDE, VOCABULARY, tokenizer_of, write_captioner

#: In the place of words of `captioners`, which have the same numbers.
ANSWERS = ("Yes", "No", "1", "2", "3", "4", "5", "is", "not", '"')
#: A conversation as Vicuna has it: a space before what is answered, and none behind what is asked.
VICUNA = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: "
    "{% for each in message['content'] %}{% if each['type'] == 'image' %}<image>\n{% else %}{{ each['text'] }}"
    "{% endif %}{% endfor %}{% else %} ASSISTANT: {{ message['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def _blip_vqa():
    config = transformers.BlipConfig(
        text_config={**_TEXT, "encoder_hidden_size": 32, "sep_token_id": SEP},
        vision_config=_VISION,
        projection_dim=16,
    )
    images = transformers.BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    model = transformers.BlipForQuestionAnswering(config)
    return model, transformers.BlipProcessor(images, tokenizer_of(True))


def _blip2_t5():
    config = transformers.Blip2Config(
        vision_config=_VISION,
        qformer_config={
            **{name: _TEXT[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")},
            "num_hidden_layers": 2,
            "vocab_size": 50,
            "encoder_hidden_size": 32,
        },
        text_config={
            "model_type": "t5",
            "vocab_size": len(VOCABULARY),
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 2,
            "decoder_start_token_id": 0,
            "eos_token_id": SEP,
        },
        num_query_tokens=4,
        image_token_index=IMAGE,
    )
    images = transformers.BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    model = transformers.Blip2ForConditionalGeneration(config)
    return model, transformers.Blip2Processor(images, tokenizer_of(True), num_query_tokens=4)


def _instructblip():
    sizes = {name: _TEXT[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    config = transformers.InstructBlipConfig(
        vision_config=_VISION,
        qformer_config={
            **sizes,
            "num_hidden_layers": 2,
            "vocab_size": len(VOCABULARY),
            "encoder_hidden_size": 32,
        },
        text_config={"model_type": "llama", **_TEXT},
        num_query_tokens=4,
        image_token_index=IMAGE,
    )
    images = transformers.BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    model = transformers.InstructBlipForConditionalGeneration(config)
    return model, transformers.InstructBlipProcessor(
        images, tokenizer_of(False), tokenizer_of(True), num_query_tokens=4
    )


KINDS = {**KINDS, "blip-vqa": _blip_vqa, "blip-2-t5": _blip2_t5, "instructblip": _instructblip}
ENCODE = ("blip-vqa", "blip-2-t5")
"""Those that encode the question, and begin an answer anew."""


def write_questioner(folder, kind, seed=5):
    """Write one with its processor, with words for questions and answers; give the folder."""
    import captioners

    captioners.KINDS.update({kind: KINDS[kind]})
    write_captioner(folder, kind, seed)
    for path in folder.rglob("tokenizer.json"):
        said = path.read_text()
        for old, new in zip(captioners.WORDS, ANSWERS, strict=False):
            written = '\\"' if new == '"' else new
            said = said.replace(f'"{old}":', f'"{written}":')
        path.write_text(said)
    return folder


def write_vicuna(folder, kind="llava", size=400):
    """A LLaVA with a tokenizer of bytes, for which a word is another behind a space, as most models have one."""
    write_captioner(folder, kind)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    torch.manual_seed(3)
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            weight.copy_(0.5 * torch.randn(weight.shape))
    model.save_pretrained(folder)
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator([" ASSISTANT: Yes No USER: Does this figure show it? a cat Yes No"] * 9, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    processor = transformers.AutoProcessor.from_pretrained(folder)
    processor.tokenizer, processor.chat_template = tokenizer, VICUNA
    processor.save_pretrained(folder)
    return folder


def likelihoods(folder, kind, image, question, answers, spaces=""):
    """By hand: the logarithm of the likelihood of each answer, float64, by whole passes without a cache."""
    model, processor = loaded(folder, kind)
    tokenizer = processor.tokenizer
    if kind in ("llava", "qwen2-vl"):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        question = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
    if kind == "git":
        inputs = dict(processor.image_processor(image, return_tensors="pt"))
        ids = [CLS, *tokenizer(question, add_special_tokens=False).input_ids]
        inputs |= {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
    else:
        inputs = dict(processor(images=image, text=question, return_tensors="pt"))
    found = []
    for answer in answers:
        tokens = tokenizer(spaces + answer, add_special_tokens=False).input_ids
        with torch.no_grad():
            if kind in ENCODE:
                begin = [CLS if kind == "blip-vqa" else 0]
                logits = model(**inputs, decoder_input_ids=torch.tensor([begin + tokens[:-1]]))
                logits = (
                    logits.logits if kind == "blip-2-t5" else _of_blip(model, inputs, begin + tokens[:-1])
                )
            else:
                own = {name: each for name, each in inputs.items() if name != "labels"}
                for name, value in {"attention_mask": 1, "token_type_ids": 1, "mm_token_type_ids": 0}.items():
                    if name in own:
                        own[name] = torch.nn.functional.pad(own[name], (0, len(tokens)), value=value)
                own["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([tokens])], dim=1)
                logits = model(**own).logits[:, -len(tokens) - 1 : -1]
        rows = logits[0].double().numpy()
        logs = rows - np.log(np.exp(rows - rows.max(-1, keepdims=True)).sum(-1, keepdims=True))
        logs -= rows.max(-1, keepdims=True)
        found.append(sum(row[token] for row, token in zip(logs, tokens, strict=True)))
    return np.array(found)


def _of_blip(model, inputs, tokens):
    seen = model.vision_model(inputs["pixel_values"]).last_hidden_state
    asked = model.text_encoder(inputs["input_ids"], encoder_hidden_states=seen).last_hidden_state
    return model.text_decoder(torch.tensor([tokens]), encoder_hidden_states=asked).logits


_LOADED = {}


def loaded(folder, kind):
    """Its model and processor, as transformers loads them."""
    if folder not in _LOADED:
        _LOADED.clear()
        kinds = {"blip-vqa": transformers.BlipForQuestionAnswering}
        load = kinds.get(kind, transformers.AutoModelForImageTextToText)
        _LOADED[folder] = (
            load.from_pretrained(folder).eval(),
            transformers.AutoProcessor.from_pretrained(folder),
        )
    return _LOADED[folder]
