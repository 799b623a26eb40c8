"""Heads on vectors: files of weights, read safely, and known by the names and the shapes of their tensors.

Only safe formats are read: safetensors, and PyTorch files with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dask.errors import WeightsError
from curator_dask.models.weights import first_line
from curator_dask.storage import RELATIVE

if TYPE_CHECKING:
    import torch

FORMS = (
    "LAION's aesthetic MLP (layers.0, 2, 4, 6 and 7), a linear head (weight [1, dim] and bias [1]), or LAION's NSFW"
    " head (norm.mean, norm.variance, linear_1 to linear_4)"
)
"""Those that are known, in words."""

#: Entry of a ``.safetensors`` file's metadata, JSON, in which `curator_dask.image.fitting` says what made the
#: vectors (as `EncoderInfo`), and whether the sigmoid of what the linear head gives is a probability.
SAID, VECTORS, PROBABILITY = "curator_dask.head", "vectors", "probability"

_AESTHETIC = tuple(f"layers.{number}" for number in (0, 2, 4, 6, 7))
_NSFW = tuple(f"linear_{number}" for number in (1, 2, 3, 4))
_LEAST_DEVIATION = 1e-7  # Keras' epsilon: what it divides by at least


@dataclass(frozen=True)
class Head:
    """A head that was read from a file.

    Attributes
    ----------
    form
        ``"aesthetic"``, ``"linear"``, ``"logistic"`` (a linear one whose sigmoid is the score) or ``"nsfw"``.
    dim
        Length of the vectors that it takes.
    module
        From float32 (n, dim) to float32 (n, 1), in eval mode, on the CPU.
    vectors
        What made the vectors that it was fitted to (`EncoderInfo`); None where the file does not say it.
    """

    form: str
    dim: int
    module: torch.nn.Module
    vectors: Mapping[str, Any] | None = None

    def to(self, device: torch.device) -> Head:
        """The same on a device."""
        return replace(self, module=self.module.to(device))

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Scores (n, 1) of vectors (n, dim), on their device."""
        scores: torch.Tensor = self.module(vectors)
        return scores


def load_head(path: str | Path) -> Head:
    """Read a head of one of the known forms.

    LAION's aesthetic MLP has no activations between its layers: it is folded into one linear map, in float64.

    Raises
    ------
    WeightsError
        The file cannot be read, or holds something else.
    """
    tensors = read_tensors(path)
    for form in (_aesthetic, _linear, _nsfw):
        head = form(tensors)
        if head is not None:
            break
    else:
        raise WeightsError(
            f"{path}: expected {FORMS}, found {_shapes(tensors)}. For a head of another form write an ImageClassifier"
            " with a load_model of your own"
        )
    bad = [name for name, tensor in head.module.state_dict().items() if not bool(tensor.isfinite().all())]
    if bad:
        raise WeightsError(f"{path}: has NaN or infinity in {', '.join(bad)}. Fetch or train it again")
    said = entry_of(path, SAID) or {}
    if head.form == "linear" and said.get(PROBABILITY):
        import torch

        head = replace(head, form="logistic", module=torch.nn.Sequential(head.module, torch.nn.Sigmoid()))
    if isinstance(said.get(VECTORS), Mapping):
        head = replace(head, vectors=said[VECTORS])
    head.module.eval().requires_grad_(False)
    return head


def entry_of(path: str | Path, name: str) -> Mapping[str, Any] | None:
    """An entry of the metadata of a ``.safetensors``, which is JSON; None where there is none, and of other files.

    Raises
    ------
    WeightsError
        It is no mapping in JSON.
    """
    if Path(path).suffix != ".safetensors":
        return None
    from safetensors import safe_open

    with safe_open(path, "numpy") as opened:
        said = (opened.metadata() or {}).get(name)
    try:
        found: Any = None if said is None else json.loads(said)
    except ValueError:
        found = said
    if not isinstance(found, Mapping | None):
        raise WeightsError(f"{path}: its metadata has {name!r}, but not what made the vectors. Make it again")
    return found


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``.safetensors``, or of a PyTorch file (any other name), on the CPU.

    Raises
    ------
    WeightsError
        There is no such file, or it is cut off, a web page, a pickle that would run code, or no mapping of names to
        tensors.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file here ({RELATIVE}). Give a path that the client and every worker see"
        )
    with path.open("rb") as file:
        start = file.read(256)
    if re.match(rb"\s*<(!doctype|html|head|\?xml)", start, re.IGNORECASE):
        raise WeightsError(
            f"{path}: is a web page, not weights. Fetch the file itself (on GitHub the 'raw' one), not the page that"
            " shows it"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needs = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        raise WeightsError(
            f"{path}: is not loaded: expected tensors by name, found a pickle of something else"
            + (f", which needs the code of {needs[1]}" if needs else "")
            + ". Where it is trusted: load it with what wrote it, and save its state_dict(), or its tensors as"
            " .safetensors. Else fetch it again"
        ) from error
    except Exception as error:  # safetensors', zip's and pickle's own, of many types
        raise WeightsError(
            f"{path}: cannot be read as weights ({path.stat().st_size} bytes): {first_line(error).partition('. ')[0]}."
            " It is cut off, or another kind of file: fetch it again"
        ) from error
    if not isinstance(found, Mapping) or not found:
        raise WeightsError(
            f"{path}: expected tensors by name (a state dict), found {type(found).__name__}. Save the module's"
            " state_dict()"
        )
    strange = [str(name) for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise WeightsError(
            f"{path}: expected tensors by name (a state dict), found something else under {', '.join(strange[:3])}."
            " Save the module's state_dict()"
        )
    return {str(name): tensor for name, tensor in found.items()}


def digest_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises
    ------
    WeightsError
        It cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be read here ({RELATIVE}): {error.strerror}. Give a path that the client and every"
            " worker see"
        ) from error


def _shapes(tensors: Mapping[str, torch.Tensor]) -> str:
    said = [f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()]
    return ", ".join(said[:6]) + (f" and {len(said) - 6} more" if len(said) > 6 else "")


def _layers(
    tensors: Mapping[str, torch.Tensor], names: tuple[str, ...]
) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """Weight and bias of linear layers that follow one another, to one value at the end; None if they do not."""
    pairs = [(tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in names]
    takes = None
    for weight, bias in pairs:
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or takes not in (None, weight.shape[1]):
            return None
        takes = weight.shape[0]
    return pairs if takes == 1 else None


def _aesthetic(tensors: Mapping[str, torch.Tensor]) -> Head | None:
    if tensors.keys() != {f"{name}.{part}" for name in _AESTHETIC for part in ("weight", "bias")}:
        return None
    layers = _layers(tensors, _AESTHETIC)
    if layers is None:
        return None
    weight, bias = (each.double() for each in layers[0])
    for next_weight, next_bias in layers[1:]:
        weight, bias = next_weight.double() @ weight, next_weight.double() @ bias + next_bias.double()
    return Head("aesthetic", weight.shape[1], _linear_map(weight, bias))


def _linear(tensors: Mapping[str, torch.Tensor]) -> Head | None:
    prefixes = {name.rpartition(".")[0] for name in tensors}
    if {name.rpartition(".")[2] for name in tensors} != {"weight", "bias"} or len(prefixes) != 1:
        return None
    weight, bias = (
        next(tensor for name, tensor in tensors.items() if name.endswith(end)) for end in ("weight", "bias")
    )
    if weight.ndim != 2 or weight.shape[0] != 1 or bias.shape != (1,):
        return None
    return Head("linear", weight.shape[1], _linear_map(weight, bias))


def _nsfw(tensors: Mapping[str, torch.Tensor]) -> Head | None:
    import torch

    names = {f"{name}.{part}" for name in _NSFW for part in ("weight", "bias")}
    if tensors.keys() != names | {"norm.mean", "norm.variance"}:
        return None
    layers = _layers(tensors, _NSFW)
    mean, variance = tensors["norm.mean"].reshape(-1), tensors["norm.variance"].reshape(-1)
    if layers is None or not mean.shape == variance.shape == layers[0][0].shape[1:]:
        return None

    class Standardised(torch.nn.Module):
        mean: torch.Tensor
        deviation: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", mean.float())
            self.register_buffer("deviation", variance.float().sqrt().clamp_min(_LEAST_DEVIATION))

        def forward(self, vectors: torch.Tensor) -> torch.Tensor:
            return (vectors - self.mean) / self.deviation

    modules: list[torch.nn.Module] = [Standardised()]
    for weight, bias in layers:
        modules += [_linear_map(weight, bias), torch.nn.ReLU()]
    return Head("nsfw", len(mean), torch.nn.Sequential(*modules[:-1], torch.nn.Sigmoid()))


def _linear_map(weight: torch.Tensor, bias: torch.Tensor) -> torch.nn.Linear:
    import torch

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return linear
