"""Encoders: a model on its device, with all that is needed to turn pixels into vectors.

An `EncoderSpec` (small, frozen, hashable) travels; its `build` makes the `Encoder` on the worker.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from curator_dask import backend
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError
from curator_dask.models.compiling import CompileSetting, CompilingModel, has_batch_norm, pays
from curator_dask.models.folding import fold_batch_norms, fold_padding
from curator_dask.models.precision import enough_cosine, least_cosine, pictures
from curator_dask.models.room import Room
from curator_dask.models.weights import state_digest

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("curator_dask")

IMAGES_A_THREAD = 16
"""Images of a forward pass on a CPU for each of torch's threads, however large the batch.

More are no faster there and take more memory. With one thread, in images/s and the process's peak in MiB, at once and
16 at a time: EfficientNet-Lite0 62 and 4,282 (a batch of 256), 59 and 1,645 (64), 60 and 1,005; ResNet-50 10.1 and
4,205, 9.9 and 1,154; ConvNeXt-T 8.2 and 5,901, 8.5 and 1,168; ViT-B/32 9.6 and 2,097, 9.9 and 1,150 (best of three on
one core, with the cluster's malloc). Compiled, EfficientNet-Lite0 is 1.09 times as fast with 16 as with 64 (three
rounds on two cores).
"""


_PASSES = 4
"""Passes of a batch, where a pass takes fewer images than the batch has: what is decoded ahead waits in memory."""


@dataclass(frozen=True)
class EncoderInfo:
    """What made an embedding; stored in the Parquet's metadata.

    Attributes
    ----------
    model
        Architecture and arguments, whatever the name by which it was asked for.
    source
        That name, and whether its weights are random; a folder may be moved, so it does not count in a comparison.
    weights
        Digest of all parameters and buffers, see `state_digest`.
    transform
        `TransformSpec.to_dict`, or the name of a user's own callable.
    output
        ``"pooled"``, ``"projected"``, ``"logits"``, or ``"model"`` for a user's own model.
    dim
        Length of a vector.
    dtype
        Arithmetic of the forward pass: ``"float32"``, ``"bfloat16"`` or ``"float16"``. Vectors are float32.
    normalized
        Whether each vector has length 1.
    least_cosine
        Of vectors in half precision to float32, as measured when the model was loaded
        (`curator_dask.models.precision`); None where it was not. It does not count when two embeddings are compared.
    images
        Of text: what makes vectors of images in the same space, ``model``, ``weights`` and ``output``; None where
        nothing is known.
    """

    model: str
    source: str
    weights: str
    transform: dict[str, Any] | str
    output: str
    dim: int
    dtype: str
    normalized: bool
    least_cosine: float | None = None
    images: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, without what was not measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class EncoderSpec(Protocol):
    """What describes an encoder: hashable, picklable, and able to build it on a worker."""

    def build(self) -> Encoder:
        """Make the encoder on this process's device."""

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class ModelSpec:
    """What every encoder of a model that has a name is told; `TimmSpec` and `ClipSpec` add their own.

    Attributes
    ----------
    model_name
        By which the model is found.
    autocast, normalize, compile
        See `Encoder`.
    """

    model_name: str
    autocast: bool | float = field(default=True, kw_only=True)
    normalize: bool = field(default=True, kw_only=True)
    compile: CompileSetting = field(default="auto", kw_only=True)

    def __str__(self) -> str:
        return self.model_name


class Encoder:
    """A model in eval mode on this process's device.

    Parameters
    ----------
    model
        Takes float32 (n, 3, H, W), gives (n, dim).
    transform
        What the model expects of its input; a callable is a user's own and gives the model's input directly.
    name
        Recorded as `EncoderInfo.model`.
    source
        Recorded as `EncoderInfo.source`, and the name in messages.
    output
        Recorded as `EncoderInfo.output`.
    normalize
        Divide each vector by its L2 norm.
    autocast
        Run in the reduced precision that is fast on this device, where there is one, if it is enough for the model:
        True wants a cosine to float32 of `curator_dask.models.precision.LEAST_COSINE`, a number another.
    compile
        Use `torch.compile`: True with the first batch, ``"auto"`` where it `pays` and once the job has shown that it
        is long.
    owned
        Nobody else has the model, and it takes what `transform` gives: on a CPU its batch normalisation and its
        padding are folded into its weights (`fold_batch_norms`, `fold_padding`).
    """

    #: Half precision is the one with more bits, see `curator_dask.backend.Backend.autocast_dtype`.
    fine = False

    def __init__(
        self,
        model: Callable[[torch.Tensor], torch.Tensor],
        transform: TransformSpec | Callable[..., torch.Tensor],
        *,
        name: str,
        source: str,
        output: str,
        normalize: bool,
        autocast: bool | float,
        compile: CompileSetting = "auto",
        owned: bool = False,
    ) -> None:
        import torch

        self.backend = backend.current()
        self.transform = transform
        self.normalize = normalize
        # Batch normalisation rounds between all layers, and bf16 is too coarse for that: pretrained EfficientNet-Lite0
        # has a least cosine of 0.994 to float32 with it (0.96 compiled), with fp16 0.9999 (photographs; fp16 emulated).
        # Of the others some keep 0.9999, and some do not: that is measured.
        fine = self.fine or has_batch_norm(model)
        self.dtype = self.backend.autocast_dtype(fine=fine) if autocast else None
        self.digest = state_digest(model) if isinstance(model, torch.nn.Module) else "unknown"
        compiles = compile is True or (compile == "auto" and pays(model))
        if isinstance(model, torch.nn.Module):
            if owned and isinstance(transform, TransformSpec) and self.backend.device == "cpu":
                noise = torch.randn((1, 3, *transform.size), generator=torch.Generator().manual_seed(0))
                fold_batch_norms(model.eval(), noise)
                fold_padding(model, noise)
            # channels_last is 1.3 to 1.5 times faster on CNNs and changes nothing on ViTs.
            model = model.eval().to(self.backend.torch_device).to(memory_format=torch.channels_last)
        self.model: Callable[[torch.Tensor], torch.Tensor] | None = model
        self._run = model
        self._name = source
        most = IMAGES_A_THREAD * torch.get_num_threads() if self.backend.device == "cpu" else None
        self._room = Room(source, "a batch of {} images", most)
        self._batch = None if most is None else _PASSES * most
        self._lock = threading.Lock()  # one forward pass at a time, also with several tasks a worker
        dim, least = self._measure(enough_cosine(autocast))
        self.info = EncoderInfo(
            model=name,
            source=source,
            weights=self.digest,
            transform=transform.to_dict()
            if isinstance(transform, TransformSpec)
            else getattr(transform, "__qualname__", type(transform).__qualname__),
            output=output,
            dim=dim,
            dtype=str(self.dtype or torch.float32).removeprefix("torch."),
            normalized=normalize,
            least_cosine=least,
        )
        if compiles:
            identity = f"{name} {output} {self.digest}" if owned else None
            self._run = CompilingModel(model, source, at_once=compile is True, identity=identity)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.info.dim

    def batch_of(self, asked: int) -> int:
        """Images that are decoded into a batch, where as many as `asked` may be."""
        return asked if self._batch is None else min(asked, self._batch)

    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """Embed a batch.

        Parameters
        ----------
        pixels
            uint8 (n, H, W, 3) on the device for a `TransformSpec`; what the callable gave, stacked, otherwise.

        Returns
        -------
        float32 (n, dim) in host memory. On a CPU at most `IMAGES_A_THREAD` times torch's threads go through the
        model at once. When the device runs out of memory the batch is halved, and stays halved for what comes after.
        """
        with self._lock:
            done: list[np.ndarray] = []
            start = 0
            while start < len(pixels):
                stop = min(len(pixels), start + self._room.of(len(pixels)))
                try:
                    done.append(self._forward(pixels[start:stop]).cpu().numpy())
                except Exception as error:
                    if not self._room.may_be_made(error, stop - start):
                        raise
                else:
                    start = stop
                    continue
                self._room.make(stop - start)
        return np.concatenate(done) if done else np.empty((0, self.dim), np.float32)

    @property
    def not_finite(self) -> str:
        """The reason of an image whose vector holds NaN or infinity."""
        cure = "; autocast=False (--no-autocast) has a larger range" if self.info.dtype == "float16" else ""
        return f"not finite: the model ({self.info.dtype}) gave NaN or infinity{cure}"

    def close(self) -> None:
        """Let the model and its device memory go."""
        self.model = None
        del self._run
        self.backend.release_memory()

    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """One pass: float32 (n, dim) on the device."""
        import torch

        assert self.model is not None, "the encoder was closed"
        device = self.backend.torch_device
        with torch.inference_mode(), torch.autocast(device.type, self.dtype, enabled=self.dtype is not None):
            inputs = self.transform.normalize(pixels) if isinstance(self.transform, TransformSpec) else pixels
            vectors = self._run(inputs)
            if (
                not isinstance(vectors, torch.Tensor)
                or vectors.shape[:1] != pixels.shape[:1]
                or vectors.ndim != 2
            ):
                found = list(vectors.shape) if isinstance(vectors, torch.Tensor) else type(vectors).__name__
                raise ConfigError(
                    f"{self._name}: expected one vector an image, a tensor of shape [{len(pixels)}, dim]; the model"
                    f" gave {found}. Use a model or an output that pools"
                )
            vectors = vectors.float()
            return torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors

    def _measure(self, enough: float) -> tuple[int, float | None]:
        """Run two pictures: how long a vector is, which no table knows, and whether half precision is enough.

        `dtype` becomes None where it is not. Also the least cosine, where there was something to measure.
        """
        inputs = self._pictures().to(self.backend.torch_device)
        vectors = self._forward(inputs)
        dim = int(vectors.shape[1])
        half, self.dtype = self.dtype, None
        if half is None:
            return dim, None
        try:
            is_enough, least = self.is_enough(self._forward(inputs), vectors, enough)
        except RuntimeError:  # weights that are in half precision themselves; float32 that finds no room
            self.dtype = half
            return dim, None
        self.dtype = half if is_enough else None
        return dim, least

    def is_enough(self, half: torch.Tensor, full: torch.Tensor, enough: float) -> tuple[bool, float | None]:
        """Whether half precision is enough for what float32 gives of the same pictures; and the least cosine."""
        least = least_cosine(half, full)
        return least >= enough, least

    def _pictures(self) -> torch.Tensor:
        """What the model is tried on, as `__call__` takes it."""
        import torch

        if isinstance(self.transform, TransformSpec):
            return torch.from_numpy(pictures(*self.transform.size))
        from PIL import Image

        inputs = [self.transform(Image.fromarray(each)) for each in pictures(256, 256)]
        if not isinstance(inputs[0], torch.Tensor):
            raise ConfigError(
                f"{self._name}: expected the transform to give a float32 tensor of an image; it gave"
                f" {type(inputs[0]).__name__}"
            )
        return torch.stack(inputs)
