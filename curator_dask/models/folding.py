"""Layers that cost nothing: what they do is put into the weights of a convolution.

Batch normalisation in eval mode multiplies each channel by a factor and adds a summand, and these do not change: the
convolution before it can have both in its weights and its bias (Jacob et al. 2018, arXiv:1712.05877, section 3.2). On
one core (AMD EPYC with AVX-512, float32, passes of 16 images, the cluster's malloc, median of seven pairs)
EfficientNet-Lite0 is 1.17 times as fast, MobileNetV3-L 1.18, EfficientNet-B0 1.14, RegNetY-800MF 1.07, ResNet-50 1.05,
DenseNet-121 1.01. The vectors are the same to about 1e-6.

Models that come from TensorFlow pad in a step of its own, which copies all that is padded, since they need a row and a
column more at one end than at the other, and convolutions pad both ends alike. Padded as much at both, with a row and a
column of zeros put before the weights, a convolution makes the same sums. On top of the above, measured in the same way
(nine pairs), EfficientNet-Lite0 and -B0 are 1.05 times as fast, MobileNetV3-L 1.10; a whole job with EfficientNet-Lite0
on two cores, which share what memory can do, 1.10. The vectors are the same.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("curator_dask")

_TOLERANCE = 1e-4
"""Of the largest value of a vector: rounding is a hundredth of it, a model that was folded wrongly is far from it."""


class _Change(Protocol):
    """Something that can be done to a model and taken back."""

    def do(self) -> None: ...

    def undo(self) -> None: ...


@dataclass
class _Fold:
    """A convolution, the normalisation of what it gives, and what they were before."""

    convolution: Any
    norm: Any
    parent: Any
    name: str

    def do(self) -> None:
        from torch.nn import Identity
        from torch.nn.utils.fusion import fuse_conv_bn_weights

        conv, norm = self.convolution, self.norm
        self._before = conv.weight, conv.bias
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        # timm's has the activation in it.
        setattr(self.parent, self.name, getattr(norm, "act", None) or Identity())

    def undo(self) -> None:
        self.convolution.weight, self.convolution.bias = self._before
        setattr(self.parent, self.name, self.norm)


@dataclass
class _Exchange:
    """A layer, and the one that does the same."""

    before: Any
    after: Any
    parent: Any
    name: str

    def do(self) -> None:
        setattr(self.parent, self.name, self.after)

    def undo(self) -> None:
        setattr(self.parent, self.name, self.before)


def fold_batch_norms(model: torch.nn.Module, inputs: torch.Tensor) -> int:
    """Fold each batch normalisation that directly follows a convolution into it.

    Which one follows which is seen in a pass of `inputs`, and that the model still gives the same vectors in another:
    where it does not (what a convolution gave is used elsewhere as well, say) it is left as it was.

    Parameters
    ----------
    model
        In eval mode; changed in place.
    inputs
        float32 (n, 3, H, W), on the model's device.

    Returns
    -------
    How many were folded.
    """
    import torch

    with torch.inference_mode():
        folds, expected = _look(model, inputs)
    return _do(folds, model, inputs, expected, "batch normalisation")


def fold_padding(model: torch.nn.Module, inputs: torch.Tensor) -> int:
    """Let convolutions that pad as TensorFlow does pad in the way of all others.

    How much a layer pads depends on the size of what it is given, so the model is one for images of one size then.
    Where it would not give the same vectors it is left as it was.

    Parameters
    ----------
    model
        In eval mode; changed in place.
    inputs
        float32 (n, 3, H, W), on the model's device: H and W are those of all images to come.

    Returns
    -------
    How many of its layers were changed.
    """
    import torch
    from timm.layers import Conv2dSame

    names = _names(model)
    sizes: dict[Any, set[tuple[int, ...]]] = {}

    def before(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        sizes.setdefault(module, set()).add(tuple(given[0].shape[2:]))

    # Exactly these, see `_look`.
    layers = [each for each in names if type(each) is Conv2dSame and not _is_looked_at(each)]
    hooks = [each.register_forward_pre_hook(before) for each in layers]
    try:
        with torch.inference_mode():
            expected = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    changes = []
    for layer, found in sizes.items():
        plain = _padding_both_ends(layer, *found) if len(found) == len(names[layer]) == 1 else None
        if plain is not None:
            changes.append(_Exchange(layer, plain, *_place(model, names[layer][0])))
    return _do(changes, model, inputs, expected, "TensorFlow's padding")


def _padding_both_ends(conv: Any, size: tuple[int, ...]) -> Any:
    """A plain convolution that gives for an input of this size what timm's `Conv2dSame` does; None if none can."""
    import torch
    from timm.layers import get_same_padding

    sides = list(zip(size, conv.kernel_size, conv.stride, conv.dilation, strict=True))
    padding = [get_same_padding(*side) for side in sides]
    more = [each % 2 for each in padding]  # rows and columns that the far end gets more than the near one
    if any(odd and dilation > 1 for odd, (*_, dilation) in zip(more, sides, strict=True)):
        return None  # a tap more before the weights is `dilation` rows more
    weight = torch.nn.functional.pad(conv.weight.detach(), (more[1], 0, more[0], 0))
    plain = torch.nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (weight.shape[2], weight.shape[3]),
        conv.stride,
        ((padding[0] + more[0]) // 2, (padding[1] + more[1]) // 2),
        conv.dilation,
        conv.groups,
        bias=conv.bias is not None,
        device="meta",  # no weights are drawn
    )
    plain.weight, plain.bias = torch.nn.Parameter(weight, requires_grad=False), conv.bias
    return plain.eval()


def _do(
    changes: Sequence[_Change],
    model: torch.nn.Module,
    inputs: torch.Tensor,
    expected: torch.Tensor,
    what: str,
) -> int:
    """Do all changes, or none where the model then gives other vectors than `expected`; how many were done."""
    import torch

    if not changes:
        return 0
    with torch.no_grad():
        for change in changes:
            change.do()
    try:
        with torch.inference_mode():
            off = float((model(inputs) - expected).abs().max() / expected.abs().max())
    except Exception as error:  # the model's own, which misses what was there
        off, why = float("nan"), f"{type(error).__name__}: {error}"
    else:
        why = f"the vectors would differ by {off:.2g} of their largest value"
    if not off <= _TOLERANCE:
        for change in changes:
            change.undo()
        logger.debug("%s is not folded into the convolutions: %s", what, why)
        return 0
    return len(changes)


def _look(model: torch.nn.Module, inputs: torch.Tensor) -> tuple[list[_Fold], torch.Tensor]:
    """What can be folded, and what the model gives."""
    import torch
    from timm.layers import BatchNormAct2d, Conv2dSame

    # Exactly these: one of a derived class may do something else with its weights in each pass.
    convolutions = {torch.nn.Conv2d, Conv2dSame}
    norms = {torch.nn.BatchNorm2d, BatchNormAct2d}
    calls: Counter[torch.nn.Module] = Counter()
    last: list[Any] = [None, None]  # convolution that was called, what it gave
    followed: list[tuple[torch.nn.Module, torch.nn.Module]] = []

    def after_convolution(module: torch.nn.Module, _: Any, made: torch.Tensor) -> None:
        calls[module] += 1
        last[:] = module, made

    def before_norm(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        calls[module] += 1
        if given and given[0] is last[1]:
            followed.append((last[0], module))

    names = _names(model)
    hooks = []
    for module in names:
        if _is_looked_at(module):
            continue
        if type(module) in convolutions:
            hooks.append(module.register_forward_hook(after_convolution))
        elif type(module) in norms and module.running_mean is not None and not _drops(module):
            hooks.append(module.register_forward_pre_hook(before_norm))
    try:
        expected = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    folds = []
    for convolution, norm in followed:
        if any(calls[module] > 1 or len(names[module]) > 1 for module in (convolution, norm)):
            continue  # in two places, of which the other may have no normalisation, or another
        folds.append(_Fold(convolution, norm, *_place(model, names[norm][0])))
    return folds, expected


def _names(model: torch.nn.Module) -> dict[torch.nn.Module, list[str]]:
    """All layers, each with every name that it has in the model."""
    names: dict[torch.nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def _place(model: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    """The layer that has the one of this name, and what it calls it."""
    parent, _, own = name.rpartition(".")
    return model.get_submodule(parent), own


def _is_looked_at(module: torch.nn.Module) -> bool:
    """Whether somebody's hooks see what a layer is given, or gives."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _drops(norm: torch.nn.Module) -> bool:
    """Whether a normalisation has a layer between itself and its activation."""
    import torch

    return not isinstance(getattr(norm, "drop", None), torch.nn.Identity | None)
