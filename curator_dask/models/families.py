"""Which vectors a head was made for, and whether those at hand are such.

A head gives a number for any vector of its length. Whether the number means anything is decided by the model that
made the vector, by which of its outputs it is, and by its length: this is compared with what a record, or a step,
says of a column (`curator_dask.models.encoders.EncoderInfo`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from curator_dask.frames.record import CLAIMED
from curator_dask.models.hub import CLIP_L14, names_folder
from curator_dask.models.weights import RANDOM

_TOWER = "CLIPVisionModelWithProjection"


class Kind(Protocol):
    """Vectors that a head is for; its text says which."""

    @property
    def remedy(self) -> str:
        """How to make such vectors."""

    @property
    def dim(self) -> int | None:
        """Their length; None: not known."""

    def differences(self, info: Mapping[str, Any]) -> list[str]:
        """How those of a record (`EncoderInfo`) differ from these, in words; none if they are such."""


@dataclass(frozen=True)
class VectorKind:
    """Vectors of one model.

    Attributes
    ----------
    title
        Of the model, in words.
    dim
        Length of a vector.
    timm
        timm's name of the model, with its tag.
    hub
        transformers' repository of it.
    tower
        What transformers' configuration of its vision tower says.
    output, normalized
        As in `EncoderInfo`.
    """

    title: str
    dim: int
    timm: str
    hub: str
    tower: Mapping[str, Any] = field(hash=False)
    output: str = "projected"
    normalized: bool = True

    def __str__(self) -> str:
        return f"{self.title} ({_described(self.output, self.normalized, self.dim)})"

    @property
    def remedy(self) -> str:
        """How to make such vectors."""
        return (
            f"Embed with TimmImageEmbedder({self.timm!r}, pretrained=True) or ClipImageEmbedder({self.hub!r}), vectors"
            " normalised"
        )

    def differences(self, info: Mapping[str, Any]) -> list[str]:
        """How vectors differ from these, in words; none if they are such, as far as their record says.

        Weights in a folder, or of a checkpoint, have no name by which to know them: there the architecture decides.
        """
        found = [self._model(str(info.get("model")), str(info.get("source")))]
        if info.get("output") != self.output:
            found.append(f"the {info.get('output')} output is not the {self.output} one")
        if info.get("normalized") is not self.normalized:
            found.append("its vectors are not of length 1")
        if info.get("dim") != self.dim:
            found.append(f"its vectors have {info.get('dim')} values, not {self.dim}")
        return [difference for difference in found if difference]

    def _model(self, model: str, source: str) -> str | None:
        kind, *settings = model.split(" ")
        if kind == _TOWER:
            return self._tower(dict(each.partition("=")[::2] for each in settings), source)
        architecture, _, tag = self.timm.partition(".")
        if kind == architecture.replace("quickgelu_", ""):
            return f"{kind} computes GELU where {self.title} was trained with QuickGELU ({architecture})"
        if kind != architecture or settings:
            return f"{model} is another model"
        if source.endswith(RANDOM):
            return f"{source}, not {self.title}'s"
        if source.startswith("local-dir:"):
            return None
        name = source.rpartition("/")[2]  # hf-hub:timm/…
        named, _, found = name.partition(".")
        if named.replace("quickgelu_", "") != architecture.replace("quickgelu_", ""):
            return f"{source} is another model"
        found = found or _default_tag(architecture)
        return None if found == tag else f"the weights {found!r} are not {self.title}'s ({tag!r})"

    def _tower(self, settings: Mapping[str, str], source: str) -> str | None:
        others = {
            name: settings.get(name) for name, value in self.tower.items() if settings.get(name) != str(value)
        }
        if others:
            return "another model: " + ", ".join(
                f"{name} {value}, not {self.tower[name]}" for name, value in others.items()
            )
        if names_folder(source) or source.partition("@")[0] == self.hub:
            return None
        return f"{source} is another model"


@dataclass(frozen=True)
class LikeThose:
    """Vectors of the model that made others.

    Attributes
    ----------
    others
        Where these are.
    record
        JSON of what their record says (`EncoderInfo`).
    """

    others: str
    record: str

    def __str__(self) -> str:
        return f"{said_of(json.loads(self.record))}, of which {self.others} is"

    @property
    def remedy(self) -> str:
        """How to make such vectors."""
        return "Embed both with one model"

    @property
    def dim(self) -> int | None:
        """Their length."""
        found: int | None = json.loads(self.record).get("dim")
        return found

    def differences(self, info: Mapping[str, Any]) -> list[str]:
        """How vectors differ from these, in words; none if they are such."""
        wanted = json.loads(self.record)
        names = ("model", "weights", "output", "dim")
        differing = [name for name in names if info.get(name) != wanted.get(name)]
        return [f"{name} {_short(info.get(name))}, not {_short(wanted.get(name))}" for name in differing]


def unchecked(known: str, one: object, other: object) -> str:
    """How to go on with vectors that do not belong together by what is known of them.

    Parameters
    ----------
    known
        What a user may know, to say so.
    one, other
        Their lengths; None: not known. Where these differ nothing helps, and nothing is offered.
    """
    if None not in (one, other) and one != other:
        return (
            f". (Of vectors of {one} values and of {other} there is no product: check=False would not help)"
        )
    return f"; or, if you know that {known}, say so by check=False (--no-check)"


def unlike(images: Mapping[str, Any], texts: Mapping[str, Any]) -> list[str]:
    """Why vectors of images and of texts, by their records, are not of one space; none if they are.

    They are if the tower that stands beside the text's is the one that made the images' vectors, by its weights. timm
    writes the same weights in another form: there both must be of a model that is known here.
    """
    beside = texts.get("images")
    if beside is None:
        return [f"nothing says which vectors of images belong to {said_of(texts)}"]
    differing = [name for name in ("model", "weights", "output") if images.get(name) != beside[name]]
    if not differing:
        return []
    if str(images.get("model")).partition(" ")[0] == str(beside["model"]).partition(" ")[0]:
        return [f"{name} {_short(images.get(name))}, not {_short(beside[name])}" for name in differing]
    own = {**beside, "source": texts.get("source"), "normalized": True, "dim": texts.get("dim")}
    for kind in (OPENAI_L14, OPENAI_B32):
        if not kind.differences(own):
            return kind.differences({**images, "normalized": True})
    return [f"{said_of(images)} is another model than that beside the text's"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def said_of(info: Mapping[str, Any]) -> str:
    """What a record says of a column of vectors, as `VectorKind` says what it is."""
    title = str(info.get("model")).partition(" ")[0]
    source = info.get("source")
    claimed = ", as is claimed" if info.get("weights") == CLAIMED else ""
    return f"{title}{f' ({source})' if source not in (None, title) else ''} (" + (
        f"{_described(str(info.get('output')), bool(info.get('normalized')), info.get('dim'))}{claimed})"
    )


def _described(output: str, normalized: bool, dim: Any) -> str:
    return f"{output}, {'of length 1' if normalized else 'not normalised'}, {dim} values"


def _default_tag(architecture: str) -> str:
    """The weights that timm takes for a name without a tag."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(architecture)
    return str(getattr(config, "tag", "") or "")


def _tower_of(patch: int, hidden: int, layers: int) -> dict[str, Any]:
    return {
        "image_size": 224,
        "patch_size": patch,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "hidden_act": "quick_gelu",
    }


OPENAI_L14 = VectorKind(
    "OpenAI's CLIP ViT-L/14",
    768,
    "vit_large_patch14_clip_quickgelu_224.openai",
    CLIP_L14,
    _tower_of(14, 1024, 24),
)
OPENAI_B32 = VectorKind(
    "OpenAI's CLIP ViT-B/32",
    512,
    "vit_base_patch32_clip_quickgelu_224.openai",
    "openai/clip-vit-base-patch32",
    _tower_of(32, 768, 12),
)
