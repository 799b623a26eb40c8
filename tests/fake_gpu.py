"""A GPU that computes nothing: torch's own fake tensors, which know their device and refuse to be mixed with others.

It needs no driver. What runs on it must have all its tensors where they belong, and bring to the host what it reads
there; what comes out has shapes and types, and zeros for values.
"""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from transformers import GenerationMixin

from curator_dask import backend

GPU = torch.device("cuda", 0)

#: NumPy has no bfloat16.
_DTYPES = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}
#: As what torch takes lists of Python's numbers.
_OF_PYTHON = {"i": torch.int64, "f": torch.float32, "b": torch.bool}


def _read(tensor, *_):
    """The zeros that stand for a tensor's values, as a NumPy array."""
    if tensor.device.type != "cpu":
        raise TypeError(f"can't convert {tensor.device} device type tensor to numpy: use Tensor.cpu() first")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"Got unsupported ScalarType {tensor.dtype}")
    return np.zeros(tuple(tensor.shape), _DTYPES[tensor.dtype])


def _value(tensor):
    return _DTYPES.get(tensor.dtype, np.float32)(0).item()


def _nonzero(tensor):
    """One place, whatever the values are."""
    return torch.zeros((1, tensor.ndim), dtype=torch.int64, device=tensor.device)


def _picked(tensor, index):
    """By a mask, one place; else as torch does it."""
    if isinstance(index, FakeTensor) and index.dtype == torch.bool:
        if index.device not in (tensor.device, torch.device("cpu")):
            raise RuntimeError(f"indices should be on cpu or on {tensor.device}, found {index.device}")
        return tensor.reshape(-1, *tensor.shape[index.ndim :])[:1]
    return _getitem(tensor, index)


def _equal(one, other):
    """Whether two tensors have one shape; of zeros no more can be said."""
    if one.device != other.device:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, found {one.device}, {other.device}"
        )
    return one.shape == other.shape


_getitem = torch.Tensor.__getitem__
_STANDS_FOR = {
    torch.Tensor.numpy: _read,
    torch.Tensor.__array__: _read,
    torch.Tensor.tolist: lambda tensor: np.zeros(tuple(tensor.shape), int).tolist(),
    torch.Tensor.nonzero: _nonzero,
    torch.equal: _equal,
    torch.nonzero: _nonzero,
    torch.Tensor.__getitem__: _picked,
    torch.Tensor.item: _value,
    torch.Tensor.__bool__: lambda tensor: bool(_value(tensor)),
    torch.Tensor.__int__: _value,
    torch.Tensor.__index__: _value,
    torch.Tensor.__float__: _value,
}


def _plain(given):
    """What `torch.tensor` is given, with zeros in place of tensors."""
    if isinstance(given, torch.Tensor):
        return np.zeros(tuple(given.shape), _DTYPES.get(given.dtype, np.float32))
    return [_plain(each) for each in given] if isinstance(given, list | tuple) else given


class _Readable(TorchFunctionMode):
    """Values of fake tensors, where some are asked for."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            given = np.asarray(_plain(args[0]))  # torch itself would ask the driver
            dtype = kwargs.get("dtype") or _OF_PYTHON[given.dtype.kind]
            return torch.zeros(given.shape, dtype=dtype, device=GPU)
        if args and isinstance(args[0], FakeTensor):
            function = _STANDS_FOR.get(function, function)
        return function(*args, **kwargs)


def _moved(module, *args, **kwargs):
    """`torch.nn.Module.to`, which cannot make fake tensors of a module's own."""
    _, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)

    def fake(tensor):
        return torch.empty(
            tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype, device=GPU
        )

    for part in module.modules():
        for name, each in part._parameters.items():
            if each is not None:
                part._parameters[name] = torch.nn.Parameter(fake(each), requires_grad=False)
        for name, each in part._buffers.items():
            if each is not None:
                part._buffers[name] = fake(each)
    return module


def on_the_host(function):
    """The function computing as ever, as what makes models and prepares images does."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        with _disable_current_modes():
            return function(*args, **kwargs)

    return call


def ended_by_length(monkeypatch):
    """Have transformers' ``generate`` end at the last token that is allowed: whether it has, it reads of a tensor."""
    generate, left = GenerationMixin.generate, [0]

    def counted(model, *args, max_new_tokens, **options):
        left[0] = max_new_tokens
        return generate(model, *args, max_new_tokens=max_new_tokens, **options)

    def goes_on(*_, **__):
        left[0] -= 1
        return left[0] >= 0

    monkeypatch.setattr(GenerationMixin, "generate", counted)
    monkeypatch.setattr(GenerationMixin, "_has_unfinished_sequences", goes_on)


class FakeGpu(backend.Backend):
    """The backend of a process with such a GPU."""

    def __init__(self):
        super().__init__("gpu", "pandas")

    def autocast_dtype(self, fine=False):
        return torch.float16 if fine else torch.bfloat16

    def release_memory(self):
        """Nothing is held."""

    def lost(self):
        return None


@contextlib.contextmanager
def fake_gpu(monkeypatch):
    """Compute on it within the block."""
    with monkeypatch.context() as patch:
        patch.setattr(backend, "current", FakeGpu)
        patch.setattr(torch.nn.Module, "to", _moved)
        with FakeTensorMode(allow_non_fake_inputs=True), _Readable():
            yield
