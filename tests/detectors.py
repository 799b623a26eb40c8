"""Tiny models of transformers' kinds that find things, of random weights, whose boxes differ from image to image."""

from __future__ import annotations

import tokenizers
import torch
import transformers

#: Of all kinds with classes of their own.
CLASSES = ("person", "face", "car", "dog")
_IDS = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: n for n, name in enumerate(CLASSES)}}
_WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "human", "face", "license", "plate", "dog", ".", "[END]")
_DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 12,
}
_SIZE = {"shortest_edge": 64, "longest_edge": 128}
_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def _resnet(kind=transformers.ResNetConfig, features=("stage4",)):
    return kind(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=list(features),
    )


def tokenizer():
    """A token a word; the last is the largest number, as CLIP's end of text is."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(_WORDS)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [END]", special_tokens=[("[CLS]", 1), ("[END]", len(_WORDS) - 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[END]",
        model_max_length=16,
    )


def _detr(name="Detr"):
    config = getattr(transformers, f"{name}Config")(backbone_config=_resnet(), **_DETR, **_IDS)
    images = getattr(transformers, f"{name}ImageProcessor")(size=_SIZE)
    return getattr(transformers, f"{name}ForObjectDetection")(config), images


def _conditional():
    return _detr("ConditionalDetr")


def _deformable():
    config = transformers.DeformableDetrConfig(
        backbone_config=_resnet(features=["stage2", "stage3", "stage4"]),
        num_feature_levels=3,
        **_DETR,
        **_IDS,
    )
    return transformers.DeformableDetrForObjectDetection(config), transformers.DeformableDetrImageProcessor(
        size=_SIZE
    )


def _yolos():
    config = transformers.YolosConfig(
        **_TOWER, image_size=[64, 96], patch_size=16, num_detection_tokens=10, **_IDS
    )
    images = transformers.YolosImageProcessor(size=_SIZE)
    return transformers.YolosForObjectDetection(config), images


def _rt_detr():
    config = transformers.RTDetrConfig(
        backbone_config=_resnet(transformers.RTDetrResNetConfig, ["stage2", "stage3", "stage4"]),
        encoder_hidden_dim=32,
        encoder_in_channels=[16, 24, 32],
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        d_model=32,
        num_queries=10,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=32,
        decoder_layers=2,
        decoder_attention_heads=2,
        anchor_image_size=None,
        **_IDS,
    )
    images = transformers.RTDetrImageProcessor(size={"height": 64, "width": 64})
    return transformers.RTDetrForObjectDetection(config), images


def _owl(name, side):
    config = getattr(transformers, f"{name}Config")(
        vision_config={**_TOWER, "image_size": side, "patch_size": 16},
        text_config={
            **_TOWER,
            "vocab_size": len(_WORDS),
            "max_position_embeddings": 16,
            "bos_token_id": 1,
            "eos_token_id": len(_WORDS) - 1,
            "pad_token_id": 0,
        },
        projection_dim=32,
    )
    images = getattr(transformers, f"{name}ImageProcessor")(size={"height": side, "width": side})
    return getattr(transformers, f"{name}ForObjectDetection")(config), images, tokenizer()


def _owlvit():
    return _owl("OwlViT", 64)


def _owlv2():
    return _owl("Owlv2", 64)


def _grounding_dino():
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            image_size=64,
            patch_size=4,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config={
            "model_type": "bert",
            **_TOWER,
            "vocab_size": len(_WORDS),
            "max_position_embeddings": 64,
            "pad_token_id": 0,
        },
        num_feature_levels=3,
        **_DETR,
    )
    images = transformers.GroundingDinoImageProcessor(size=_SIZE)
    return transformers.GroundingDinoForObjectDetection(config), images, tokenizer()


KINDS = {
    "detr": _detr,
    "conditional-detr": _conditional,
    "deformable-detr": _deformable,
    "yolos": _yolos,
    "rt-detr": _rt_detr,
    "owlvit": _owlvit,
    "owlv2": _owlv2,
    "grounding-dino": _grounding_dino,
}
ASKED = ("owlvit", "owlv2", "grounding-dino")


def write_detector(folder, kind, seed=5, spread=2.0):
    """Write one with its processor, as save_pretrained does, and give the folder."""
    torch.manual_seed(seed)  # what is left as it is made is the same each time, too
    model, *parts = KINDS[kind]()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan = parameter[0].numel()
                parameter.copy_(spread * torch.randn(parameter.shape) / fan**0.5)
    model.eval().save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    return folder
