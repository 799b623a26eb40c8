"""`torch.compile` where it pays for itself: not before a job has shown that it is a long one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from curator_dask import backend
from curator_dask.errors import ConfigError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("curator_dask")

CompileSetting = bool | Literal["auto"]

WORTH_AFTER = 300.0
"""Seconds of forward passes after which ``"auto"`` compiles.

How long a job will be is not known to a worker. One that compiles when it has worked for as long as the compilation
takes to pay for itself never loses more than as much again, and a short job never compiles. EfficientNet-Lite0 with
one core: 25 s to compile, 1.08 times as fast afterwards as with its batch normalisation folded (1.3 times as without,
as a user's own model is), so 25 s are won back in 300 s."""

_PAD_FROM = 0.75
"""Part of the compiled batch from which a smaller one is filled up to it; below, the model as it was is faster."""

_MOST = 3
"""Sizes of a batch that a model is compiled for, one after the other."""

_LEAST_GAIN = 1.05
"""How many times as fast the compiled model must be for ``"auto"`` to keep it."""


def check_compile(value: Any) -> None:
    """Raise ConfigError where a value is none of ``"auto"``, True and False."""
    if value != "auto" and not isinstance(value, bool):
        raise ConfigError(f"compile={value!r}: expected 'auto', True or False")


class CompilingModel:
    """A model that is compiled when the time has come, for one size of batch; for one thread at a time.

    It is compiled again for a larger size, as where a small shard was the first, but not more than `_MOST` times.

    Parameters
    ----------
    model
        Called with a tensor whose first axis runs along the images, in inference mode.
    name
        For messages.
    at_once
        Compile with the first batch. Otherwise after `WORTH_AFTER` seconds, and only to keep what is faster.

    Attributes
    ----------
    compiled_for
        Images of a batch that it is compiled for; 0 while it is not.
    """

    def __init__(self, model: Callable[[torch.Tensor], torch.Tensor], name: str, at_once: bool) -> None:
        self._model = model
        self._name = name
        self._at_once = at_once
        self._compiled: Callable[[torch.Tensor], torch.Tensor] = model
        self.compiled_for = 0
        self._largest = 0  # batch that came
        self._spent = 0.0  # seconds, since it was last compiled
        self._left = _MOST

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the model gives; how it is made may differ from call to call."""
        count = len(inputs)
        if self._is_due(count):
            self._compile(inputs)
        if _PAD_FROM * self.compiled_for <= count <= self.compiled_for:
            return self._compiled(_filled(inputs, self.compiled_for))[:count]
        begun = time.perf_counter()
        made = self._model(inputs)
        self._spent += time.perf_counter() - begun
        return made

    def _is_due(self, count: int) -> bool:
        self._largest = max(self._largest, count)
        may = self._left > 0 and count > self.compiled_for
        return may and (self._at_once or (self._spent >= WORTH_AFTER and count == self._largest))

    def _compile(self, inputs: torch.Tensor) -> None:
        begun = time.perf_counter()
        try:
            compiled = _compiled(self._model, inputs)
        except Exception as error:
            if backend.is_out_of_memory(error):
                raise  # the caller comes again with a smaller batch
            # There is no compiler on this machine, or the model cannot be traced: errors of many types.
            self._left = 0
            logger.log(
                logging.WARNING if self._at_once else logging.DEBUG,
                "%s: not compiled, going on as before: %s: %s",
                self._name,
                type(error).__name__,
                (str(error).strip().splitlines() or ["no word"])[0][:300],
            )
            return
        seconds = time.perf_counter() - begun
        gain = _seconds(self._model, inputs) / _seconds(compiled, inputs)
        keep = self._at_once or gain >= _LEAST_GAIN
        if keep:
            self._compiled, self.compiled_for = compiled, len(inputs)
        self._left, self._spent = self._left - 1 if keep else 0, 0.0
        logger.debug(
            "%s: compiled in %.0f s for batches of %d, %.2f times as fast%s",
            self._name,
            seconds,
            len(inputs),
            gain,
            "" if keep else ": not used",
        )


def pays(model: Any) -> bool:
    """Whether compiling is known to make a model faster here: CNNs with batch normalisation, on a CPU.

    The activation is done with the convolution (EfficientNet-Lite0 1.08 times as fast), and a normalisation that was
    not folded before is folded. ViTs and ConvNeXts gain nothing there. On GPUs it has not been measured.
    """
    return backend.current().device == "cpu" and has_batch_norm(model)


def has_batch_norm(model: Any) -> bool:
    """Whether a model is a module with batch normalisation in it, which ViTs and ConvNeXts have not."""
    import torch

    return isinstance(model, torch.nn.Module) and any(
        isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in model.modules()
    )


def _compiled(
    model: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model compiled for inputs of this shape; it is called once to make that happen."""
    import torch
    from torch._inductor import config

    compiled = torch.compile(model, dynamic=False)
    # freezing: weights become constants, so that what can be folded into them is.
    options: dict[str, Any] = {"freezing": True}
    if (
        backend.current().device == "cpu"
    ):  # this worker's share of the cores; of a GPU's worker it is inductor's choice
        options["compile_threads"] = torch.get_num_threads()
    with config.patch(**options):
        compiled(inputs)
    return compiled


def _seconds(model: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> float:
    """Seconds of a pass, to its end; the better of two."""
    taken = []
    for _ in range(2):
        begun = time.perf_counter()
        model(inputs).cpu()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _filled(inputs: torch.Tensor, size: int) -> torch.Tensor:
    """The inputs with blank images after them, in the same memory format."""
    if len(inputs) == size:
        return inputs
    import torch

    whole = torch.empty_like(inputs[:1].expand(size, *inputs.shape[1:]))
    whole[: len(inputs)] = inputs
    whole[len(inputs) :] = 0
    return whole
