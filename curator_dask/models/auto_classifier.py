"""transformers' models for image classification: what its AutoModelForImageClassification loads from safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator_dask import backend
from curator_dask.errors import ConfigError, CuratorError
from curator_dask.fingerprint import fingerprint
from curator_dask.models.classes import ClassNames
from curator_dask.models.classification import LogitsEncoder
from curator_dask.models.encoders import Encoder, ModelSpec
from curator_dask.models.hub import CONFIG, PROCESSORS, find_folder, read_json
from curator_dask.models.processors import read_any_transform
from curator_dask.models.sources import OfTransformers
from curator_dask.models.towers import load_whole
from curator_dask.models.weights import first_line

#: Of a configuration, what changes no output: names, and how its files came to be.
_NO_MATTER = re.compile(
    r"_.*|id2label|label2id|architectures|problem_type|transformers_version|(torch_)?dtype"
)


@dataclass(frozen=True)
class AutoClassifier(OfTransformers, ModelSpec):
    """Everything that decides what one of these models makes of an image.

    Attributes
    ----------
    model_name
        A folder with ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` as transformers writes
        them, or a repository of the hub: ``"org/repo"``, ``"org/repo@revision"``.
    model_dir
        See `curator_dask.models.hub.find_folder`.
    autocast, compile
        See `Encoder`.
    """

    model_dir: str | None = None

    def fetch(self) -> Path:
        """The folder with the weights; fetched if it is nowhere, without loading anything.

        Raises
        ------
        ConfigError
            The model is none of transformers' that classify images.
        WeightsError
            The weights cannot be had.
        """
        return find_folder(
            self.model_name, self.model_dir, lambda config: check_config(config, self.model_name)
        )

    def build_logits(self) -> tuple[Encoder, ClassNames, str]:
        """Make it on this process's device; see `curator_dask.models.classification.LogitsSpec`.

        Raises
        ------
        ConfigError
            The model classifies no images, or not those that its processor makes, or its preprocessing is one that a
            `TransformSpec` cannot express.
        WeightsError
            The weights cannot be had, or do not fit the configuration.
        """
        folder = self.fetch()
        stated = read_json(folder / CONFIG)
        check_config(stated, str(folder))
        transform = read_any_transform(folder)
        model = _load(folder)
        decides = {name: value for name, value in stated.items() if not _NO_MATTER.fullmatch(name)}
        try:
            encoder = LogitsEncoder(
                _logits_of(model),
                transform,
                name=f"{type(model).__name__} [{fingerprint(decides)[:12]}]",
                source=self.model_name,
                output="logits",
                normalize=False,
                autocast=self.autocast,
                compile=self.compile,
            )
        except (ValueError, RuntimeError, IndexError) as error:
            if isinstance(error, CuratorError) or backend.is_out_of_memory(error):
                raise
            raise ConfigError(
                f"{folder}: {type(model).__name__} does not take images of {list(transform.size)} pixels, which its"
                f" {PROCESSORS[0]} makes: {type(error).__name__}: {first_line(error)}"
            ) from error
        config = model.config
        return encoder, ClassNames.numbered(config.id2label, encoder.dim), _activation(config, encoder.dim)


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Raise ConfigError where a ``config.json`` is of no model of transformers' that classifies images."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    found = config.get("model_type")
    if found is None and "architecture" in config:
        raise ConfigError(
            f"{name}: its {CONFIG} is timm's, of the architecture {config['architecture']!r}: write hf-hub: before the"
            " name of the repository, or local-dir: before that of the folder"
        )
    if found not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES or found == "timm_wrapper":
        raise ConfigError(
            f"{name}: its {CONFIG} has the model_type {found!r}, which is none of transformers' that classify images"
            " (AutoModelForImageClassification). timm's models have the prefix hf-hub: or local-dir:"
        )


def _activation(config: Any, count: int) -> str:
    """As transformers' own pipeline decides it (``ImageClassificationPipeline.postprocess``)."""
    if config.problem_type == "regression":
        return "none"
    return "sigmoid" if config.problem_type == "multi_label_classification" or count == 1 else "softmax"


def _load(folder: Path) -> Any:
    import transformers

    kind = transformers.AutoModelForImageClassification
    model = load_whole(kind, folder, "classify", trust_remote_code=False)
    _check_names(model.config.id2label, folder)
    return model


def _check_names(names: Mapping[int, str], folder: Path) -> None:
    """Refuse names whose numbers are not those of the outputs: some names would be of none."""
    count = len(names)
    if {*names} == {*range(count)}:
        return
    beyond = sorted({*names} - {*range(count)})
    nameless = sorted({*range(count)} - {*names})
    raise ConfigError(
        f"{folder / CONFIG}: id2label: expected the names of {count} classes by the numbers 0 to {count - 1}; found"
        f" {_few(beyond)}, and none for {_few(nameless)}. Number the names as the model's outputs are"
    )


def _few(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"{', '.join(map(str, numbers[:5]))}{more}"


def _logits_of(model: Any) -> Any:
    """The model as a module that gives its outputs (n, classes) alone."""
    import torch

    class Logits(torch.nn.Module):
        # Not named in its code: a class is collected late, and all that its functions hold.
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(pixel_values=images).logits
            return logits

    return Logits(model)
