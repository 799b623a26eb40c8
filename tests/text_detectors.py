"""Tiny models that find text in images: one that finds what is bright, and others of random weights."""

from __future__ import annotations

import functools

import numpy as np
import skimage.data
import torch
import transformers
from PIL import Image, ImageDraw

_LCNET = {
    "block_configs": [[[3, 16, 16, stride, False]] for stride in (1, 2, 2, 2, 2)],
    "scale": 1.0,
    "out_features": ["stage2", "stage3", "stage4", "stage5"],
    "out_indices": [2, 3, 4, 5],
}
_HGNET = {
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 16, 16, 16],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [16, 16, 16, 16],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [1, 1, 1, 1],
    "hidden_sizes": [16, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_SIZES = {"longratio": 7, "midratio": 5, "shortratio": 3}
_INTRACLASS = {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]}
for _name, _size in _SIZES.items():
    _half = _size // 2
    _INTRACLASS[f"symmetric_conv_long_{_name}"] = [_size, 1, _half]
    _INTRACLASS[f"vertical_long_to_small_conv_{_name}"] = [[_size, 1], 1, [_half, 0]]
    _INTRACLASS[f"horizontal_small_to_long_conv_{_name}"] = [[1, _size], 1, [0, _half]]
_KERNELS = {"kernel_list": [3, 2, 2]}


def _mobile():
    config = transformers.PPOCRV5MobileDetConfig(
        backbone_config=transformers.PPLCNetV3Config(**_LCNET, conv_symmetric_num=1),
        neck_out_channels=16,
        layer_list_out_channels=[8, 8, 8, 8],
        **_KERNELS,
    )
    return transformers.PPOCRV5MobileDetForObjectDetection(config)


def _server():
    config = transformers.PPOCRV5ServerDetConfig(
        backbone_config=transformers.HGNetV2Config(**_HGNET),
        neck_out_channels=32,
        intraclass_block_config=_INTRACLASS,
        scale_factor_list=[1, 2, 4, 8],
        **_KERNELS,
    )
    return transformers.PPOCRV5ServerDetForObjectDetection(config)


def _lcnet4():
    return transformers.PPLCNetV4Config(
        block_configs=[[[3, 16, 16, stride, False]] for stride in (1, 2, 2, 2)],
        stem_channels=[3, 8, 16],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _small():
    config = transformers.PPOCRV6SmallDetConfig(
        backbone_config=_lcnet4(), neck_out_channels=16, layer_list_out_channels=[16] * 4, **_KERNELS
    )
    return transformers.PPOCRV6SmallDetForObjectDetection(config)


def _medium():
    config = transformers.PPOCRV6MediumDetConfig(
        backbone_config=_lcnet4(),
        neck_out_channels=32,
        intraclass_block_config=_INTRACLASS,
        scale_factor_list=[1, 2, 4, 8],
        **_KERNELS,
    )
    return transformers.PPOCRV6MediumDetForObjectDetection(config)


KINDS = {
    "pp_ocrv5_mobile_det": _mobile,
    "pp_ocrv5_server_det": _server,
    "pp_ocrv6_small_det": _small,
    "pp_ocrv6_medium_det": _medium,
}


def write_text_detector(folder, kind, seed=5):
    """Write one of random weights with its processor, as save_pretrained does, and give the folder.

    What it makes of a photograph is stretched so that some of it is above the thresholds, and most is not.
    """
    torch.manual_seed(seed)
    model = KINDS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan = parameter[0].numel()
                parameter.copy_(1.5 * torch.randn(parameter.shape) / fan**0.5)
        for each in model.modules():  # else there are no areas, but dots
            if isinstance(each, torch.nn.ConvTranspose2d):
                each.weight.copy_(each.weight[..., :1, :1].expand_as(each.weight))
        seen = {}
        last = [
            each
            for name, each in model.head.named_modules()
            if name.endswith(("conv_final", "convolution_final"))
        ]
        for each in last:
            each.register_forward_hook(lambda module, _, made: seen.update({module: made}))
        processor = transformers.PPOCRV5ServerDetImageProcessor()
        picture = Image.fromarray(skimage.data.coffee()).resize((160, 128))
        model(pixel_values=processor(images=picture, return_tensors="pt")["pixel_values"])
        for each in last:
            each._forward_hooks.clear()
            spread, most = seen[each].std(), seen[each].quantile(0.8)
            each.weight.mul_(6 / spread)
            each.bias.copy_((each.bias - most) * 6 / spread)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_brightness_detector(folder):
    """Write one of the mobile kind whose text is what is much brighter than grey, to some four pixels."""
    model = _mobile().eval()
    state = model.state_dict()
    for name, each in state.items():
        if each.is_floating_point() and not name.endswith(("running_var", "scale")):
            each.zero_()

    def through(name, weight=1.0, channel=0):
        state[f"{name}.convolution.weight"][0, channel].fill_(weight)
        norm = "norm" if name.startswith("head") else "normalization"
        state[f"{name}.{norm}.weight"].fill_(1)

    stem = "model.backbone.encoder.convolution"
    through(stem, 0)
    state[f"{stem}.convolution.weight"][0, :, 1, 1] = 1 / 3
    for stage in (0, 1):
        layer = f"model.backbone.encoder.blocks.{stage}.layers.0"
        through(f"{layer}.depthwise_convolution.conv_small_symmetric")
        through(f"{layer}.pointwise_convolution.conv_symmetric.0")
    state["model.layer.0.weight"][0, 0] = 1
    state["model.neck.insert_conv.0.in_conv.weight"][0, 0] = 1
    state["model.neck.input_conv.0.in_conv.weight"][0, 0, 1, 1] = 1
    # The finest map comes last.
    through("head.conv_down", 0)
    state["head.conv_down.convolution.weight"][0, 12, 1, 1] = 1
    through("head.conv_up")
    # White comes to 9 and more here, mid grey to less than 1.
    state["head.conv_final.weight"][0, 0] = 4
    state["head.conv_final.bias"].fill_(-12)
    model.load_state_dict(state)
    model.save_pretrained(folder)
    transformers.PPOCRV5ServerDetImageProcessor().save_pretrained(folder)
    return folder


def banner(size, boxes, background=(30, 60, 90), turn=0):
    """A picture with white rectangles, in pixels, turned by some degrees."""
    image = Image.new("RGB", size, background)
    draw = ImageDraw.Draw(image)
    for left, top, right, bottom in boxes:
        draw.rectangle((left, top, right - 1, bottom - 1), fill="white")
    return image.rotate(turn, fillcolor=background)


@functools.lru_cache(2)
def _loaded(folder):
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    return model, transformers.AutoImageProcessor.from_pretrained(folder)


def transformers_text(folder, image, **options):
    """What transformers finds in a PIL image alone, the likeliest first: quadrilaterals (n, 4, 2) and scores."""
    model, processor = _loaded(str(folder))
    inputs = processor(images=image, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(pixel_values=inputs["pixel_values"])
    sizes = inputs["target_sizes"]
    (found,) = processor.post_process_object_detection(outputs, target_sizes=sizes, **options)
    order = np.argsort(-found["scores"].numpy(), kind="stable")
    return found["boxes"].numpy().reshape(-1, 4, 2)[order], found["scores"].numpy()[order]
