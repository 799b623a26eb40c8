"""Layers folded into convolutions: the same vectors as timm's own model, or nothing is changed."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, Conv2dSame, StdConv2d, StdConv2dSame
from torch import nn

from curator_dask.models.compiling import has_batch_norm
from curator_dask.models.encoders import Encoder
from curator_dask.models.folding import fold_batch_norms, fold_padding
from curator_dask.models.timm import TimmSpec

SIZE = (3, 64, 64)


def noise(count: int) -> torch.Tensor:
    return torch.randn((count, *SIZE), generator=torch.Generator().manual_seed(5))


def shaken(model: nn.Module) -> nn.Module:
    """The model with normalisations that do something, as trained ones do."""
    generator = torch.Generator().manual_seed(7)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low, high in (
                (part.running_mean, -0.3, 0.3),
                (part.running_var, 0.4, 2.0),
                (part.weight, 0.5, 1.5),
                (part.bias, -0.3, 0.3),
            ):
                if tensor is not None:
                    with torch.no_grad():
                        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


def vectors(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(noise(4))


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("test_efficientnet", 0),
        ("test_resnet", 0),
        ("test_byobnet", 0),
        ("mobilenetv3_small_050", 0),
        ("tf_mobilenetv3_small_minimal_100", 0),  # TensorFlow's padding
        pytest.param("repghostnet_050", None, marks=pytest.mark.slow),
        ("densenet121", 12),  # normalises before its convolutions
    ],
)
def test_a_folded_model_gives_the_same_vectors(name, left):
    torch.manual_seed(0)
    smaller = {"block_config": (2, 2, 2, 2)} if name == "densenet121" else {}
    model = shaken(timm.create_model(name, num_classes=0, **smaller))
    count = sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    expected = vectors(model)
    folded = fold_batch_norms(model, noise(1))
    still = sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    assert folded > 0 and folded + still == count
    assert left is None or still == left
    largest = expected.abs().max()
    assert (vectors(model) - expected).abs().max() < 1e-5 * largest
    assert (expected[0] - expected[1]).abs().max() > 5e-4 * largest, "no test: all images have one vector"
    if not still:
        assert fold_batch_norms(model, noise(1)) == 0


class Pooled(nn.Module):
    """Two layers of a kind, and the mean over what they give."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images).mean(dim=(2, 3))


class UsesBoth(Pooled):
    """What the convolution gives goes past the normalisation as well."""

    def features(self, images):
        made = self.conv(images)
        return self.norm(made) + made


class Twice(Pooled):
    """One convolution in two places, with a normalisation at one of them."""

    def features(self, images):
        return self.conv(self.norm(self.conv(images)))


class TwoNames(Pooled):
    def features(self, images):
        return self.norm(self.conv(images)) * self.other.weight.mean()


class Asks(Pooled):
    """Looks for the normalisation's own values."""

    def features(self, images):
        return self.norm(self.conv(images)) + self.norm.running_mean.mean()


class InOrder(Pooled):
    def features(self, images):
        return self.norm(self.conv(images))


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, padding=1)


def hooked() -> nn.Module:
    made = conv()
    made.register_forward_hook(lambda *_: None)
    return made


def two_names() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    return TwoNames(conv=conv(), norm=norm, other=norm)


@pytest.mark.parametrize(
    "make",
    [
        lambda: UsesBoth(conv=conv(), norm=nn.BatchNorm2d(3)),
        lambda: Twice(conv=conv(), norm=nn.BatchNorm2d(3)),
        two_names,
        lambda: Asks(conv=conv(), norm=nn.BatchNorm2d(3)),
        lambda: InOrder(conv=StdConv2d(3, 3, 3), norm=nn.BatchNorm2d(3)),  # its weights are made in each pass
        lambda: InOrder(conv=torch.nn.utils.parametrizations.weight_norm(conv()), norm=nn.BatchNorm2d(3)),
        lambda: InOrder(conv=conv(), norm=nn.BatchNorm2d(3, track_running_stats=False)),
        lambda: InOrder(conv=conv(), norm=nn.GroupNorm(3, 3)),
        lambda: InOrder(conv=hooked(), norm=nn.BatchNorm2d(3)),
        lambda: InOrder(conv=conv(), norm=BatchNormAct2d(3, drop_layer=nn.Dropout)),
    ],
)
def test_what_cannot_be_folded_is_as_it_was(make):
    torch.manual_seed(0)
    model = shaken(make())
    parts, weights = dict(model.named_modules()), {k: v.clone() for k, v in model.state_dict().items()}
    expected = vectors(model)
    assert fold_batch_norms(model, noise(1)) == 0
    assert dict(model.named_modules()) == parts
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(vectors(model), expected, rtol=0, atol=0)
    assert not any(len(part._forward_pre_hooks) for part in model.modules())


def test_a_bias_and_an_activation_stay():
    torch.manual_seed(0)
    for norm in (nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False), BatchNormAct2d(3)):
        model = shaken(InOrder(conv=conv(), norm=norm))
        expected = vectors(model)
        assert fold_batch_norms(model, noise(1)) == 1
        torch.testing.assert_close(vectors(model), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tf_mobilenetv3_small_100", (64, 64)),
        ("tf_mobilenetv3_small_100", (65, 65)),
        ("tf_mobilenetv3_small_100", (63, 50)),
        ("tf_mobilenetv3_small_100", (224, 96)),
        ("tf_efficientnet_lite0", (224, 96)),
        pytest.param("tf_mixnet_s", (63, 50), marks=pytest.mark.slow),
        pytest.param("tf_efficientnetv2_b0", (65, 65), marks=pytest.mark.slow),
    ],
)
def test_a_model_that_pads_both_ends_gives_the_same_vectors(name, size):
    torch.manual_seed(0)
    model = shaken(timm.create_model(name, num_classes=0))
    count = sum(type(part) is Conv2dSame for part in model.modules())
    images = torch.randn((3, 3, *size))
    with torch.inference_mode():
        expected = model(images)
    state = {name: value.shape for name, value in model.state_dict().items()}
    assert fold_padding(model, images[:1]) == count > 3
    assert not any(isinstance(part, Conv2dSame) for part in model.modules())
    assert model.state_dict().keys() == state.keys()
    with torch.inference_mode():
        made = model.to(memory_format=torch.channels_last)(images)
    assert (made - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (expected[0] - expected[1]).abs().max() > 5e-4 * expected.abs().max()
    assert fold_padding(model, images[:1]) == 0


@pytest.mark.parametrize("kernel", [1, 2, 3, 5, (3, 2), (1, 4), 7])
def test_a_convolution_that_pads_both_ends(kernel):
    torch.manual_seed(0)
    strides, dilations, sizes = (1, 2, (2, 1), 5), (1, 2, (1, 2)), ((17, 16), (18, 21))
    for stride, dilation, groups, size in itertools.product(strides, dilations, (1, 3), sizes):
        case = f"stride {stride}, dilation {dilation}, groups {groups}, size {size}"
        layer = Conv2dSame(3, 6, kernel, stride, dilation=dilation, groups=groups, bias=groups == 1)
        model = nn.Sequential(layer).eval()
        state = torch.random.get_rng_state()
        images = torch.randn((2, 3, *size), generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = model(images)
            folded = fold_padding(model, images)
            assert torch.allclose(model(images), expected, rtol=1e-5, atol=1e-6), case
        assert folded == 1 or (folded == 0 and dilation != 1 and model[0] is layer), case
        assert torch.equal(torch.random.get_rng_state(), state), "others' random numbers are as they were"


class Plain(Pooled):
    def features(self, images):
        return self.conv(images)


class TwoSizes(Pooled):
    def features(self, images):
        return self.conv(self.conv(images))


class Weighs(Pooled):
    """Looks at the convolution's weights."""

    def features(self, images):
        return self.conv(images) * self.conv.weight.mean()


class KnowsItsKind(Pooled):
    def features(self, images):
        return self.conv(images) + isinstance(self.conv, Conv2dSame)


def hooked_same() -> nn.Module:
    made = Conv2dSame(3, 3, 3, 2)
    made.register_forward_hook(lambda *_: None)
    return made


def shared_same() -> nn.Module:
    layer = Conv2dSame(3, 3, 3, 2)
    return TwoNames(conv=layer, norm=nn.Identity(), other=layer)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TwoSizes(conv=Conv2dSame(3, 3, 3, 2)),
        lambda: Weighs(conv=Conv2dSame(3, 3, 3, 2)),
        lambda: KnowsItsKind(conv=Conv2dSame(3, 3, 3, 2)),
        lambda: Plain(conv=StdConv2dSame(3, 3, 3, 2)),
        lambda: Plain(conv=torch.nn.utils.parametrizations.weight_norm(Conv2dSame(3, 3, 3, 2))),
        lambda: Plain(conv=hooked_same()),
        lambda: Plain(conv=conv()),
        shared_same,
    ],
)
def test_a_layer_that_must_pad_as_it_does_is_as_it_was(make):
    torch.manual_seed(0)
    model = make().eval()
    parts = dict(model.named_modules())
    expected = vectors(model)
    assert fold_padding(model, noise(1)) == 0
    assert dict(model.named_modules()) == parts
    torch.testing.assert_close(vectors(model), expected, rtol=0, atol=0)
    assert not any(len(part._forward_pre_hooks) for part in model.modules())


def test_what_is_left_alone_is_said(caplog):
    caplog.set_level(logging.DEBUG, "curator_dask")
    torch.manual_seed(0)
    fold_batch_norms(shaken(UsesBoth(conv=conv(), norm=nn.BatchNorm2d(3))), noise(1))
    fold_batch_norms(shaken(Asks(conv=conv(), norm=nn.BatchNorm2d(3))), noise(1))
    differs, fails = caplog.messages
    assert "not folded" in differs and "of their largest value" in differs
    assert "AttributeError" in fails


def test_an_encoder_says_of_a_folded_model_what_it_says_of_the_model(device):
    torch.manual_seed(0)
    encoder = TimmSpec("test_efficientnet", pretrained=False, compile=False).build()
    model = timm.create_model("test_efficientnet", pretrained=False, num_classes=0)
    own = Encoder(
        model, encoder.transform, name="x", source="x", output="pooled", normalize=True, autocast=True
    )
    assert has_batch_norm(encoder.model) == (device == "gpu")  # where it has been measured
    assert has_batch_norm(own.model), "a user's own model is not changed"
    same = TimmSpec("tf_mobilenetv3_small_minimal_100", pretrained=False, compile=False).build()
    assert any(isinstance(part, Conv2dSame) for part in same.model.modules()) == (device == "gpu")
    assert encoder.info.dtype == own.info.dtype  # not bf16, for which it is too coarse
    plain = TimmSpec("test_efficientnet", pretrained=False, compile="auto").build()
    assert plain.info == encoder.info and (plain._run is not plain.model) == (device == "cpu")
    pixels = torch.randint(0, 256, (5, *encoder.transform.size, 3), dtype=torch.uint8)
    np.testing.assert_array_equal(encoder(pixels), plain(pixels))
