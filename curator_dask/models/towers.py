"""The towers of CLIP and SigLIP as transformers has them, read from a folder."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from curator_dask.errors import ConfigError, WeightsError
from curator_dask.models.hub import CONFIG
from curator_dask.models.weights import first_line

CLIP_TYPES = ("clip", "clip_vision_model", "clip_text_model")
SIGLIP_TYPES = ("siglip", "siglip_vision_model", "siglip_text_model")
"""``model_type`` of ``config.json``: of both towers, or of one alone."""

_ARCHITECTURE = (
    "image_size",
    "patch_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
)
"""What decides, with the weights, what a tower computes."""

_OTHERS_TIMM = {
    "vision": "Use TimmImageEmbedder with hf-hub:org/repo or local-dir:/folder",
    "text": "Take the same model as transformers has it",
}
_OTHERS = {
    "vision": "Other models need an ImageEmbedder of your own",
    "text": "A folder of sentence-transformers is for SentenceEmbedder",
}

_QUIET = threading.Lock()  # transformers' verbosity belongs to the process


def check_type(config: Mapping[str, Any], name: str, side: str = "vision") -> None:
    """Raise ConfigError where a ``config.json`` has no such tower of a CLIP or a SigLIP."""
    found = config.get("model_type")
    types = [kind for kind in CLIP_TYPES + SIGLIP_TYPES if "_" not in kind or f"_{side}_" in kind]
    if found in types:
        return
    supported = ", ".join(types)
    if "architecture" in config and found is None:
        raise ConfigError(
            f"{name}: its {CONFIG} is timm's, of the architecture {config['architecture']!r}; expected one of"
            f" transformers' with a model_type of {supported}. {_OTHERS_TIMM[side]}"
        )
    raise ConfigError(
        f"{name}: its {CONFIG} has the model_type {found!r}; expected one of {supported}. {_OTHERS[side]}"
    )


def load_tower(folder: Path, is_clip: bool, side: str) -> Any:
    """A tower in float32 on the CPU, every tensor of it from the folder.

    Parameters
    ----------
    folder
        As transformers writes it.
    is_clip
        Else it is a SigLIP.
    side
        ``"vision"`` or ``"text"``.

    Raises
    ------
    WeightsError
        The weights cannot be read, or do not fit the configuration.
    """
    import transformers

    names = {
        (True, "vision"): "CLIPVisionModelWithProjection",
        (True, "text"): "CLIPTextModelWithProjection",
        (False, "vision"): "SiglipVisionModel",
        (False, "text"): "SiglipTextModel",
    }
    kind = getattr(transformers, names[is_clip, side])  # which imports this family's code, and no other's
    with loading(folder):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        own = getattr(config, f"{side}_config", config)
        if is_clip and own is not config:
            own.projection_dim = config.projection_dim  # it is this one that CLIPModel takes
    tower, found = load_model(kind, folder, config=own)
    # Further tensors, of the other tower, are as it should be, but not more layers of this one; those that are
    # missing would stay random.
    more = sorted(name for name in found["unexpected_keys"] if name.startswith(f"{side}_model."))
    if [name for name in more if not name.endswith("position_ids")]:
        raise WeightsError(
            f"{folder}: the weights have {len(more)} tensors that its config.json does not have: {', '.join(more[:3])}."
            " They must be of one model"
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise WeightsError(
            f"{folder}: the weights lack {len(missing)} tensors of {kind.__name__}: {', '.join(missing[:3])}. They must"
            " be those of the config.json beside them"
        )
    return tower


def described(tower: Any) -> str:
    """Class and architecture of a tower, as `EncoderInfo.model` has it."""
    settings = [
        f"{name}={getattr(tower.config, name)}" for name in _ARCHITECTURE if hasattr(tower.config, name)
    ]
    return " ".join([type(tower).__name__, *settings])


def vectors_of(tower: Any) -> Any:
    """The tower as a module that gives vectors (n, dim) alone."""
    import torch

    class Vectors(torch.nn.Module):
        # Not named in its code: a class is collected late, and all that its functions hold.
        def __init__(self, tower: Any) -> None:
            super().__init__()
            self.tower = tower

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found = self.tower(pixel_values=images)
            vectors: torch.Tensor = found.image_embeds if "image_embeds" in found else found.pooler_output
            return vectors

    return Vectors(tower)


def load_model(kind: Any, folder: Path, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    """A model of transformers' on the CPU, whose tensors are its own, and what is said of its loading.

    Parameters
    ----------
    kind
        The class, such as `transformers.CLIPVisionModelWithProjection`.
    folder
        As transformers writes it.
    **options
        Further ones of ``kind.from_pretrained``, ``dtype`` among them; without it the model is in float32.

    Raises
    ------
    WeightsError
        The weights cannot be read, or a tensor has another shape than by the configuration.
    """
    import torch

    options.setdefault("dtype", torch.float32)  # else the file's; the encoder autocasts where that is fast
    with loading(folder):
        model, found = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # else the error has no shapes: it points to a report on the console
            **options,
        )
    _check_shapes(found["mismatched_keys"], model.config, folder)
    # Its tensors are views of the file, mapped into memory, which the workers of a machine share: a copy for each would
    # cost CLIP ViT-L/14 1.2 GB a worker. So a file is not to be written in place while a run reads it.
    return model, found


def load_whole(kind: Any, folder: Path, trained_to: str, **options: Any) -> Any:
    """A model of transformers' on the CPU, every tensor of it from the folder.

    Parameters
    ----------
    kind, folder, **options
        As for `load_model`.
    trained_to
        Do what, for messages.

    Raises
    ------
    WeightsError
        The weights cannot be read, or are not those of the configuration.
    """
    model, found = load_model(kind, folder, **options)
    name = type(model).__name__
    missing = sorted(found["missing_keys"])
    if missing:
        raise WeightsError(
            f"{folder}: the weights lack {len(missing)} tensors of {name}: {', '.join(missing[:3])}. They must be those"
            f" of a model that was trained to {trained_to}, and of the config.json beside them"
        )
    # Further tensors may be of a part that is not needed, but not further layers of what is.
    layers = {_any_number(each) for each in model.state_dict()}
    more = sorted(each for each in found["unexpected_keys"] if _any_number(each) in layers)
    if more:
        raise WeightsError(
            f"{folder}: the weights have {len(more)} tensors that its config.json does not have: {', '.join(more[:3])}."
            " They must be of one model"
        )
    return model


def _any_number(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", name)


def _check_shapes(mismatched: Collection[tuple[str, Any, Any]], config: Any, folder: Path) -> None:
    """Refuse tensors (name, the weights' shape, the model's) that transformers left random."""
    if not mismatched:
        return
    differing = [(name, list(model), list(weights)) for name, weights, model in sorted(mismatched)]
    listed = ", ".join(
        f"{name} (expected {model}, found {weights})" for name, model, weights in differing[:3]
    )
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    classes = config.num_labels
    if all(
        model[:1] == [classes] and weights and model[1:] == weights[1:] for _, model, weights in differing
    ):
        advice = (
            f"Its {CONFIG} has {classes} classes (names in id2label; 2 where it has none), its weights have"
            f" {differing[0][2][0]}: id2label must name each class of the weights"
        )
    else:
        advice = f"Its {CONFIG} and its weights must be of one model"
    raise WeightsError(f"{folder}: the weights do not fit its {CONFIG}: {listed}{more}. {advice}")


@contextlib.contextmanager
def loading(folder: Path) -> Iterator[None]:
    """The block has transformers load a model from a folder: silently, and what goes wrong is a WeightsError."""
    import transformers

    try:
        with silent_transformers():
            yield
    except Exception as error:
        raise WeightsError(
            f"{folder}: the model cannot be loaded: {type(error).__name__}: {first_line(error)}. Its config.json and"
            f" its weights must be of one model, as save_pretrained of transformers (here"
            f" {transformers.__version__}) writes them"
        ) from error


@contextlib.contextmanager
def silent_transformers() -> Iterator[None]:
    """Without its progress bar, and its list of the text tower's tensors, on each worker."""
    from transformers.utils import logging

    with _QUIET:
        verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        if bar:
            logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bar:
                logging.enable_progress_bar()
