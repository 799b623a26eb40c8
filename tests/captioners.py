"""Tiny captioning models of transformers' kinds, of random weights, whose captions differ from image to image."""

from __future__ import annotations

import tokenizers
import torch
import transformers

SPECIAL = (
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[UNK]",
    "<image>",
    "<user>",
    "<assistant>",
    "<|image_pad|>",
    "<|video_pad|>",
)
WORDS = tuple(f"{first}{second}" for first in ("ba", "do", "ki", "lu", "mo") for second in "bdfgklmnprst")
VOCABULARY = (*SPECIAL, "describe", "it", "a", "photo", "of", *WORDS)
PAD, CLS, SEP, IMAGE = 0, 1, 2, 4
SIDE = 32
#: A chat template with an image and a text.
TEMPLATE = (
    "{% for message in messages %}<user> {% for each in message['content'] %}"
    "{% if each['type'] == 'image' %}<image> {% else %}{{ each['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = {**_SIZES, "image_size": SIDE, "patch_size": 16}
_TEXT = {
    **_SIZES,
    "vocab_size": len(VOCABULARY),
    "bos_token_id": CLS,
    "eos_token_id": SEP,
    "pad_token_id": PAD,
    "max_position_embeddings": 200,
}
_SQUARE = {"height": SIDE, "width": SIDE}


def tokenizer_of(wraps: bool):
    """A token a word; with one before and one behind each text, as BERT has it, or not."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if wraps:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        pad_token="[PAD]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        additional_special_tokens=list(SPECIAL[4:]),
        model_max_length=200,
    )


def _blip():
    config = transformers.BlipConfig(
        text_config={**_TEXT, "encoder_hidden_size": 32, "sep_token_id": SEP, "is_decoder": True},
        vision_config=_VISION,
        projection_dim=16,
    )
    images = transformers.BlipImageProcessor(size=_SQUARE)
    return transformers.BlipForConditionalGeneration(config), transformers.BlipProcessor(
        images, tokenizer_of(True)
    )


def _git():
    config = transformers.GitConfig(vision_config=_VISION, **_TEXT)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=_SQUARE)
    return transformers.GitForCausalLM(config), transformers.GitProcessor(images, tokenizer_of(True))


def _vit_gpt2():
    decoder = transformers.GPT2Config(
        vocab_size=len(VOCABULARY),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=200,
        bos_token_id=SEP,
        eos_token_id=SEP,
        pad_token_id=SEP,
        add_cross_attention=True,
        is_decoder=True,
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**_VISION), decoder
    )
    config.decoder_start_token_id = config.eos_token_id = config.pad_token_id = SEP
    model = transformers.VisionEncoderDecoderModel(config)
    return model, (transformers.ViTImageProcessor(size=_SQUARE), tokenizer_of(False))


def _llava():
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION),
        text_config=transformers.LlamaConfig(**_TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    images = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=_SQUARE)
    processor = transformers.LlavaProcessor(
        images,
        tokenizer_of(False),
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def _qwen2_vl():
    """Takes images of any size: the more pixels, the more tokens."""
    config = transformers.Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "num_heads": 2,
            "hidden_size": 32,
            "patch_size": 8,
            "mlp_ratio": 2,
        },
        text_config={
            **_TEXT,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        },
        image_token_id=7,
        vision_start_token_id=5,
        vision_end_token_id=6,
        video_token_id=8,
    )
    images = transformers.Qwen2VLImageProcessor(
        patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    videos = transformers.Qwen2VLVideoProcessor(patch_size=8)
    template = TEMPLATE.replace("<image>", "<|image_pad|>")
    processor = transformers.Qwen2VLProcessor(images, tokenizer_of(False), videos, chat_template=template)
    return transformers.Qwen2VLForConditionalGeneration(config), processor


def _blip2():
    config = transformers.Blip2Config(
        vision_config=_VISION,
        qformer_config={**_SIZES, "vocab_size": 50, "encoder_hidden_size": 32},
        text_config={
            "model_type": "opt",
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
            **{name: value for name, value in _TEXT.items() if name != "intermediate_size"},
        },
        num_query_tokens=4,
        image_token_index=IMAGE,
    )
    images = transformers.BlipImageProcessor(size=_SQUARE)
    processor = transformers.Blip2Processor(images, tokenizer_of(False), num_query_tokens=4)
    return transformers.Blip2ForConditionalGeneration(config), processor


def _paligemma():
    config = transformers.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", "projection_dim": 32, **_VISION},
        text_config={"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 16, **_TEXT},
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
    )
    images = transformers.SiglipImageProcessor(size=_SQUARE)
    images.image_seq_length = 4
    processor = transformers.PaliGemmaProcessor(images, tokenizer_of(False))
    return transformers.PaliGemmaForConditionalGeneration(config), processor


KINDS = {
    "blip": _blip,
    "blip-2": _blip2,
    "git": _git,
    "vit-gpt2": _vit_gpt2,
    "llava": _llava,
    "qwen2-vl": _qwen2_vl,
    "paligemma": _paligemma,
}


def write_captioner(folder, kind, seed=5, ends_at_once=False):
    """Write one with its processor, as save_pretrained does, and give the folder."""
    torch.manual_seed(seed)  # what is left as it is made is the same each time, too
    model, processor = KINDS[kind]()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan = parameter[0].numel()
                parameter.copy_(2 * torch.randn(parameter.shape) / fan**0.5)
        if ends_at_once:
            model.text_decoder.cls.predictions.bias[SEP] = 1e4
    model.eval().save_pretrained(folder)
    for part in processor if isinstance(processor, tuple) else (processor,):
        part.save_pretrained(folder)
    return folder
