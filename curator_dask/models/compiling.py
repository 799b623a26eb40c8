"""`torch.compile` where it pays for itself: not before a job has shown that it is a long one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from curator_dask import backend
from curator_dask.errors import ConfigError
from curator_dask.models import compiled_files
from curator_dask.models.precision import least_cosine

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

_WORTH_LOADING_AFTER = 20.0
"""The same for a model that was compiled before and is loaded: EfficientNet-Lite0 takes 1.5 s, with a look at whether
it is the same and faster."""

_PAD_FROM = 0.75
"""Part of the compiled batch from which a smaller one is filled up to it; below, the model as it was is faster."""

_MOST = 3
"""Sizes of a batch that a model is compiled for, one after the other."""

_LEAST_GAIN = 1.05
"""How many times as fast the compiled model must be for ``"auto"`` to keep it."""

_LEAST_COSINE = 0.999
"""Of a vector to the model's own, for a compiled model that is kept in a file: half precision rounds elsewhere then."""


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
    identity
        What the model is, its architecture and its weights: on a CPU it is kept in a file once it is compiled
        (`curator_dask.models.compiled_files`), and taken from there with the first batch, or soon by ``"auto"``. None
        keeps nothing.

    Attributes
    ----------
    compiled_for
        Images of a batch that it is compiled for; 0 while it is not.
    """

    def __init__(
        self,
        model: Callable[[torch.Tensor], torch.Tensor],
        name: str,
        at_once: bool,
        identity: str | None = None,
    ) -> None:
        self._model = model
        self._name = name
        self._at_once = at_once
        self._identity = identity if backend.current().device == "cpu" else None
        self._looked_for: set[int] = set()  # sizes of a batch of which a file was looked for
        self._compiled: Callable[[torch.Tensor], torch.Tensor] = model
        self.compiled_for = 0
        self._largest = 0  # batch that came
        self._spent = 0.0  # seconds, since it was last compiled
        self._left = _MOST

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the model gives; how it is made may differ from call to call."""
        count = len(inputs)
        self._largest = max(self._largest, count)
        if count > self.compiled_for:
            if self._is_due(count, _WORTH_LOADING_AFTER):
                self._take_kept(inputs)
            if count > self.compiled_for and self._left > 0 and self._is_due(count, WORTH_AFTER):
                self._compile(inputs)
        if _PAD_FROM * self.compiled_for <= count <= self.compiled_for:
            return self._compiled(_filled(inputs, self.compiled_for))[:count]
        begun = time.perf_counter()
        made = self._model(inputs)
        self._spent += time.perf_counter() - begun
        return made

    def _is_due(self, count: int, after: float) -> bool:
        return self._at_once or (self._spent >= after and count == self._largest)

    def _take_kept(self, inputs: torch.Tensor) -> None:
        """Take the compiled model out of its file, if there is one for this size; each is looked for once."""
        if self._identity is None or len(inputs) in self._looked_for:
            return
        self._looked_for.add(len(inputs))
        begun = time.perf_counter()
        compiled = compiled_files.load(self._identity, inputs)
        if compiled is None or not self._agrees(compiled, inputs):
            return
        if not self._at_once and _seconds(self._model, inputs) < _LEAST_GAIN * _seconds(compiled, inputs):
            return
        self._compiled, self.compiled_for = compiled, len(inputs)
        seconds = time.perf_counter() - begun
        logger.debug("%s: compiled before for batches of %d, in %.1f s", self._name, len(inputs), seconds)

    def _agrees(self, compiled: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> bool:
        """Whether a compiled model gives the vectors that the model gives; the file of one that does not goes."""
        try:
            found = least_cosine(compiled(inputs).flatten(1), self._model(inputs).flatten(1))
        except RuntimeError as error:
            if backend.is_out_of_memory(error):
                raise
            found = 0.0
        if found >= _LEAST_COSINE:
            return True
        assert self._identity is not None
        logger.debug("%s: the compiled model is not used, its vectors differ (%.4f)", self._name, found)
        compiled_files.drop(self._identity, inputs)
        return False

    def _made(self, inputs: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """The compiled model: out of a file that was made for it where that can be, else by `torch.compile`."""
        if self._identity is not None:
            try:
                compiled = compiled_files.make(self._model, self._identity, inputs, _threads())
                if compiled is not None and self._agrees(compiled, inputs):
                    return compiled
            except Exception as error:  # of many types: the model cannot be exported, or there is no compiler
                if backend.is_out_of_memory(error):
                    raise
                logger.debug("%s: not compiled into a file: %s", self._name, type(error).__name__)
        return _compiled(self._model, inputs)

    def _compile(self, inputs: torch.Tensor) -> None:
        begun = time.perf_counter()
        try:
            compiled = self._made(inputs)
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
        elif self._identity is not None:
            compiled_files.drop(self._identity, inputs)  # else each run would load and measure it
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
    if backend.current().device == "cpu":  # of a GPU's worker it is inductor's choice
        options["compile_threads"] = _threads()
    with config.patch(**options):
        compiled(inputs)
    return compiled


def _threads() -> int:
    """Compilers at a time: this worker's share of the cores."""
    import torch

    return torch.get_num_threads()


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
