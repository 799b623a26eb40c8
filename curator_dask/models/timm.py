"""timm's models as encoders: which output is the embedding, and what the model expects of an image."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError
from curator_dask.models.encoders import Encoder, ModelSpec
from curator_dask.models.sources import State, files_state
from curator_dask.models.weights import LOCAL_PREFIXES, RANDOM, create_timm_model
from curator_dask.settings import absolute

OUTPUTS = ("auto", "pooled", "projected", "logits")

#: Names, in timm's architectures and tags, of image towers that were trained against text.
_CONTRASTIVE = re.compile(r"(clip|siglip|pe_core|tipsv2)")
#: Class counts of the classifiers that timm carries: ImageNet-1k, -12k, -21k, -22k and their variants.
_CLASSIFIER_HEADS = frozenset({0, 1000, 10450, 11221, 11821, 19168, 21841, 21842, 21843})


@dataclass(frozen=True)
class TimmSpec(ModelSpec):
    """Everything that decides what a timm model makes of an image.

    Attributes
    ----------
    model_name, pretrained, checkpoint_path
        See `create_timm_model`.
    model_kwargs
        Sorted (name, value) pairs for `timm.create_model`.
    output
        One of `OUTPUTS`.
    autocast, normalize, compile
        See `Encoder`.
    """

    pretrained: bool = True
    checkpoint_path: str | None = None
    model_kwargs: tuple[tuple[str, Any], ...] = ()
    output: str = "auto"

    @classmethod
    def of(
        cls,
        model_name: str,
        pretrained: bool,
        checkpoint_path: str | os.PathLike[str] | None,
        model_kwargs: Mapping[str, Any],
        **others: Any,
    ) -> TimmSpec:
        """The spec of arguments as users give them, with paths that are the same on every worker."""
        return cls(
            model_name=absolute_name(model_name),
            pretrained=pretrained,
            checkpoint_path=None if checkpoint_path is None else str(absolute(checkpoint_path)),
            model_kwargs=tuple(sorted((name, _frozen(value)) for name, value in model_kwargs.items())),
            **others,
        )

    @property
    def source_state(self) -> State | None:
        """Of its folder and its checkpoint, if it has any; see `curator_dask.cache.SpecCache.refresh`."""
        folders = [self.model_name.partition(":")[2]] if self.model_name.startswith(LOCAL_PREFIXES) else []
        return files_state([*folders, *([] if self.checkpoint_path is None else [self.checkpoint_path])])

    def build(self, kind: type[Encoder] = Encoder) -> Encoder:
        """Make the encoder on this process's device.

        Parameters
        ----------
        kind
            `Encoder`, or a class of these.

        Raises
        ------
        ConfigError
            The model has no such output, its weights are of another count of classes, or it takes images with other
            than three channels.
        WeightsError
            The weights cannot be had.
        """
        from timm.data import resolve_data_config

        kwargs = dict(self.model_kwargs)
        model = create_timm_model(self.model_name, self.pretrained, self.checkpoint_path, kwargs)
        if not hasattr(model, "num_classes"):  # features_only=True gives a list of feature maps
            raise ConfigError(
                f"{self.model_name}: with model_kwargs={kwargs!r} timm gives a {type(model).__name__}; expected a"
                " model that gives one vector an image"
            )
        config: Mapping[str, Any] = model.pretrained_cfg
        loads = self.pretrained or self.checkpoint_path is not None
        output = choose_output(self.output, config, model.num_classes, self.model_name)
        if self.pretrained and self.checkpoint_path is None and output != "pooled":
            _check_head(model.num_classes, config["num_classes"], self.model_name)
        if output == "pooled" and model.num_classes:
            model.reset_classifier(0)
        size = kwargs.get("img_size")
        overrides = (
            {} if size is None else {"input_size": (3, *((size, size) if isinstance(size, int) else size))}
        )
        data_config = resolve_data_config(overrides, pretrained_cfg=config)
        channels = kwargs.get("in_chans", data_config["input_size"][0])
        if channels != 3:
            raise ConfigError(f"{self.model_name} takes {channels} channels; expected 3 (RGB)")
        return kind(
            model,
            TransformSpec.from_timm(data_config),
            name=" ".join(
                [config["architecture"], *(f"{key}={value!r}" for key, value in self.model_kwargs)]
            ),
            source=self.model_name if loads else f"{self.model_name} {RANDOM}",
            output=output,
            normalize=self.normalize,
            autocast=self.autocast,
            compile=self.compile,
            owned=True,
        )


def _check_head(built: int, trained: int, name: str) -> None:
    """Refuse a head that timm leaves random, without a word, as the weights have one of another size."""
    if built != trained:
        raise ConfigError(
            f"{name}: num_classes is {built} (model_kwargs, --model-kwargs), and its weights have a head of {trained}"
            f" classes: one of {built} would be random. Leave num_classes out, or pass the weights of a model with"
            f" {built} classes as checkpoint_path (--checkpoint)"
        )


def absolute_name(model_name: str) -> str:
    """The name, with the folder of ``local-dir:`` as an absolute path."""
    for prefix in LOCAL_PREFIXES:
        if model_name.startswith(prefix) and len(model_name) > len(prefix):
            return f"local-dir:{absolute(model_name.removeprefix(prefix))}"
    return model_name


def _frozen(value: Any) -> Any:
    """The value with lists as tuples, so that it can be a key."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    try:
        hash(value)
    except TypeError:
        raise ConfigError(
            f"model_kwargs: expected numbers, strings and lists of them, found {value!r}"
        ) from None
    return value


def choose_output(wanted: str, config: Mapping[str, Any], num_classes: int, name: str) -> str:
    """Settle ``"auto"``, and refuse an output that the model does not have.

    A contrastive tower (CLIP and its like) ends in a projection that timm keeps as the model's head: its
    embedding is the projected one. SigLIP has no projection: its pooled output is its embedding. A classifier's
    head gives logits; its embedding is what comes before.

    Parameters
    ----------
    wanted
        One of `OUTPUTS`.
    config
        timm's ``pretrained_cfg`` of the model.
    num_classes
        Outputs of the model's head as built; 0 if it has none.
    name
        Name for messages.

    Returns
    -------
    ``"pooled"``, ``"projected"`` or ``"logits"``.
    """
    projects = num_classes in projection_dims(config)
    if wanted == "auto":
        return "projected" if projects else "pooled"
    if wanted == "projected" and not projects:
        raise ConfigError(
            f"{name}: output='projected' needs a contrastive tower with a projection (CLIP and its like); this"
            f" model's head {'has ' + str(num_classes) + ' classes' if num_classes else 'is absent'}."
            " Use output='pooled'"
        )
    if wanted == "logits" and (projects or not num_classes):
        raise ConfigError(
            f"{name}: output='logits' needs a classifier; this model"
            f" {'ends in a projection' if projects else 'has no head'}. Use output='auto'"
        )
    return wanted


def projection_dims(config: Mapping[str, Any]) -> set[int]:
    """Widths that timm registers for the projection of this architecture; empty if it is no contrastive tower."""
    from timm.models import get_pretrained_cfg, list_pretrained

    architecture, tag = config.get("architecture") or "", config.get("tag") or ""
    if not _CONTRASTIVE.search(f"{architecture}.{tag}"):
        return set()
    tags = [name for name in list_pretrained(f"{architecture}.*") if _CONTRASTIVE.search(name)]
    registered = filter(None, map(get_pretrained_cfg, tags))
    return {config.num_classes for config in registered} - _CLASSIFIER_HEADS
