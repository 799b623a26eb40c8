"""Which embedder a model's name means, and which one made an output: for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curator_dask.errors import ConfigError, OutputError
from curator_dask.image.classifiers.whole import WholeModel
from curator_dask.image.embedders.base import ImageEmbedder
from curator_dask.image.embedders.clip import ClipImageEmbedder
from curator_dask.image.embedders.timm import TimmImageEmbedder
from curator_dask.image.embedders.whole import WHOLE_MODELS
from curator_dask.models.hub import is_transformers
from curator_dask.outputs.settings_there import settings_of
from curator_dask.storage import Options

#: Arguments of `TimmImageEmbedder` alone: their options, and their values where those are not given.
_TIMMS_ALONE: dict[str, tuple[str, Any]] = {
    "pretrained": ("--no-pretrained", True),
    "output": ("--model-output", "auto"),
    "checkpoint_path": ("--checkpoint", None),
    "model_kwargs": ("--model-kwargs", {}),
}


def make_embedder(
    model: str, model_dir: str | None, timms: Mapping[str, Any], **arguments: Any
) -> ImageEmbedder:
    """Make the embedder that a model's name means.

    Parameters
    ----------
    model
        A name of timm's, or a repository or folder of transformers' CLIP or SigLIP.
    model_dir
        See `ClipImageEmbedder`.
    timms
        Arguments that `TimmImageEmbedder` has alone: ``pretrained``, ``output``, ``checkpoint_path``,
        ``model_kwargs``.
    **arguments
        Of both.

    Raises
    ------
    ConfigError
        An argument is given that this embedder does not have.
    """
    if is_transformers(model):
        given = [option for name, (option, unset) in _TIMMS_ALONE.items() if timms[name] != unset]
        if given:
            raise ConfigError(
                f"--model {model} is transformers' and does not take {', '.join(given)}, which timm's models do. A"
                " timm model of the hub has the prefix hf-hub:, in a folder local-dir:"
            )
        return ClipImageEmbedder(model, model_dir, **arguments)
    if model_dir is not None:
        raise ConfigError(
            f"--model-dir is for the weights of transformers' CLIP and SigLIP; --model {model} is timm's. Expected"
            " org/repo, such as openai/clip-vit-large-patch14, or a folder with its files"
        )
    if model.startswith(("/", ".", "~")):  # no name of timm's, which a folder may have as well
        raise ConfigError(
            f"--model {model} is a path, and its folder is none of transformers': a folder with timm's config.json and"
            f" model.safetensors is named local-dir:{model}"
        )
    return TimmImageEmbedder(model, **timms, **arguments)


def made_again(settings: Mapping[str, Any]) -> ImageEmbedder | WholeModel:
    """Make the embedder again that an output says made it, or what else saw its images; see `from_settings`."""
    for kind in WHOLE_MODELS.values():
        if (made := kind.of(settings)) is not None:
            return made
    return from_settings(settings)


def finder_of(output: str, column: str, options: Options = None) -> WholeModel | None:
    """Make the model again that found the boxes in a column of an output; None where no file says that one did.

    In a pass that embeds it stands before an embedder that covers these: what is there is taken over, and seen to be of
    this model.
    """
    settings = settings_of(output, column, options)
    made = made_again({**settings, "on_error": "null"}) if settings else None
    return made if isinstance(made, WholeModel) and column in made.columns else None


def from_settings(settings: Mapping[str, Any]) -> ImageEmbedder:
    """Make the embedder again that an output says made it.

    Parameters
    ----------
    settings
        What its `ImageEmbedder.settings` gave: the arguments, and the class's name under ``"embedder"``. Without
        the name it is `TimmImageEmbedder`, which came first.

    Raises
    ------
    OutputError
        This version has no such embedder.
    """
    arguments = dict(settings)
    name = arguments.pop("embedder", TimmImageEmbedder.__name__)
    kinds: dict[str, type[ImageEmbedder]] = {
        kind.__name__: kind for kind in (TimmImageEmbedder, ClipImageEmbedder)
    }
    if name not in kinds:
        raise OutputError(
            f"the output was made by {name}; this version of curator_dask can make {', '.join(kinds)} again. Use the"
            " version that wrote it, or the embedder's own retry() in Python"
        )
    return kinds[name](**arguments)
