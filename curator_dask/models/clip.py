"""CLIP and SigLIP as transformers has them: the vision tower, its projection and its own preprocessing.

`ClipSpec` (small, frozen, hashable) travels; `ClipSpec.build` makes the `Encoder` on the worker, from a folder
that `curator_dask.models.hub` finds or fetches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError
from curator_dask.models.encoders import Encoder, ModelSpec
from curator_dask.models.hub import CLIP_L14, CONFIG, PROCESSORS, find_folder, read_json
from curator_dask.models.towers import CLIP_TYPES, check_type, described, load_tower, vectors_of

_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters by their numbers, which is how transformers writes them."""

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # transformers.image_utils.OPENAI_CLIP_MEAN
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)  # transformers.image_utils.OPENAI_CLIP_STD

_COMMON = {
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    # Of transformers' CLIPImageProcessor and SiglipImageProcessor; also where a file leaves something out.
    "CLIP": {
        **_COMMON,
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": 224,
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
    },
    "Siglip": {
        **_COMMON,
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
    },
}


@dataclass(frozen=True)
class ClipSpec(ModelSpec):
    """Everything that decides what a CLIP or SigLIP makes of an image.

    Attributes
    ----------
    model_name
        A folder with ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` as transformers
        writes them, or a repository of the hub: ``"org/repo"``, ``"org/repo@revision"``.
    model_dir
        See `curator_dask.models.hub.find_folder`.
    autocast, normalize, compile
        See `Encoder`.
    """

    model_name: str = CLIP_L14
    model_dir: str | None = None

    def fetch(self) -> Path:
        """The folder with the weights; fetched if it is nowhere, without loading anything.

        Raises
        ------
        ConfigError
            The model is neither CLIP nor SigLIP.
        WeightsError
            The weights cannot be had.
        """
        return find_folder(
            self.model_name, self.model_dir, lambda config: check_type(config, self.model_name)
        )

    def build(self) -> Encoder:
        """Make the encoder on this process's device: the projected embedding of CLIP, the pooled one of SigLIP.

        Raises
        ------
        ConfigError
            The model is neither CLIP nor SigLIP, or its preprocessing is one that a `TransformSpec` cannot express.
        WeightsError
            The weights cannot be had, or do not fit the configuration.
        """
        folder = self.fetch()
        config = read_json(folder / CONFIG)
        check_type(config, str(folder))
        is_clip = config["model_type"] in CLIP_TYPES
        transform = read_transform(folder, "CLIP" if is_clip else "Siglip")
        tower = load_tower(folder, is_clip, "vision")
        made = tower.config
        expected = made.image_size if isinstance(made.image_size, list | tuple) else (made.image_size,) * 2
        if transform.size != tuple(expected):
            raise ConfigError(
                f"{folder}: its preprocessing makes images of {list(transform.size)} pixels, its model takes"
                f" {list(expected)}: set crop_size or size in {PROCESSORS[0]} to what the model takes"
            )
        return Encoder(
            vectors_of(tower),
            transform,
            name=described(tower),
            source=self.model_name,
            output="projected" if is_clip else "pooled",
            normalize=self.normalize,
            autocast=self.autocast,
            compile=self.compile,
        )


def read_transform(folder: Path, processor: str) -> TransformSpec:
    """The transform that a model's folder states, as transformers' image processor does it.

    Parameters
    ----------
    folder
        With ``preprocessor_config.json``, or ``processor_config.json`` that holds an ``image_processor``. With
        neither, and for what they leave out, the processor's own defaults hold.
    processor
        ``"CLIP"`` or ``"Siglip"``: whose defaults.

    Raises
    ------
    ConfigError
        It states something that `TransformSpec` cannot express; the message names it.
    WeightsError
        A file cannot be read.
    """
    stated: Mapping[str, Any] = {}
    where = folder / PROCESSORS[0]
    for name in PROCESSORS:
        if (folder / name).is_file():
            where = folder / name
            stated = read_json(where)
            stated = stated.get("image_processor", stated) if name != PROCESSORS[0] else stated
            break
    kind = stated.get("image_processor_type") or stated.get("feature_extractor_type") or ""
    if not isinstance(kind, str) or (kind and not kind.startswith(("CLIP", "Siglip"))):
        _refuse(where, "image_processor_type", kind, "one of CLIP's or SigLIP's")
    settings = {
        **_DEFAULTS[processor],
        **{name: value for name, value in stated.items() if value is not None},
    }
    required = {"do_resize": True, "do_rescale": True, "do_pad": False, "use_square_size": False}
    for name, wanted in required.items():
        if settings.get(name, wanted) is not wanted:
            _refuse(where, name, settings[name], str(wanted))
    factor, resample = settings["rescale_factor"], settings["resample"]
    if not isinstance(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        _refuse(where, "rescale_factor", factor, "1/255")
    if isinstance(resample, bool) or not isinstance(resample, int) or resample not in range(len(_RESAMPLE)):
        _refuse(where, "resample", resample, "a number of Pillow's filters, 0 to 5")
    size, crop_pct, crop_mode = _sizes(settings, where)
    normalizes = settings["do_normalize"]
    return TransformSpec(
        size=size,
        interpolation=_RESAMPLE[resample],
        mean=settings["image_mean"] if normalizes else (0.0, 0.0, 0.0),
        std=settings["image_std"] if normalizes else (1.0, 1.0, 1.0),
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )


def _sizes(settings: Mapping[str, Any], where: Path) -> tuple[tuple[int, int], float, str]:
    """Size, crop_pct and crop_mode of the transform."""
    size = settings["size"]
    if isinstance(size, int):
        square = settings.get("default_to_square", False)
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    crop = (
        _height_and_width(settings["crop_size"], "crop_size", where) if settings["do_center_crop"] else None
    )
    if not isinstance(size, Mapping) or set(size) not in ({"shortest_edge"}, {"height", "width"}):
        _refuse(where, "size", size, "a number, shortest_edge, or height and width")
    if "height" in size:
        whole = _height_and_width(size, "size", where)
        if crop not in (None, whole):
            _refuse(where, "crop_size", list(crop or ()), f"{list(whole)}, the size of the resized image")
        return whole, 1.0, "squash"
    if crop is None:
        _refuse(where, "do_center_crop", False, "True, as with shortest_edge images would differ in size")
    if crop[0] != crop[1]:
        _refuse(where, "crop_size", list(crop), "a square, as size is the shortest edge")
    edge = size["shortest_edge"]
    if not isinstance(edge, int) or edge < 1:
        _refuse(where, "size", size, "a whole number of pixels")
    if crop[0] > edge:  # transformers' two processors disagree on where the border is
        _refuse(where, "crop_size", list(crop), f"at most {edge}, the shortest edge")
    return crop, crop_pct_of(crop[0], edge), "center_floor"


def _height_and_width(value: Any, name: str, where: Path) -> tuple[int, int]:
    both = (value, value) if isinstance(value, int) else ()
    if isinstance(value, Mapping) and set(value) == {"height", "width"}:
        both = (value["height"], value["width"])
    if len(both) != 2 or not all(isinstance(each, int) and each > 0 for each in both):
        _refuse(where, name, value, "a number of pixels, or height and width")
    return both


def crop_pct_of(crop: int, edge: int) -> float:
    """The `TransformSpec.crop_pct` with which ``floor(crop / crop_pct)`` is exactly `edge`."""
    crop_pct = crop / edge
    # A quotient that was rounded up takes the edge a hair below itself, and the floor a whole pixel.
    return crop_pct if math.floor(crop / crop_pct) == edge else math.nextafter(crop_pct, 0)


def _refuse(where: Path, name: str, found: Any, expected: str) -> NoReturn:
    raise ConfigError(
        f"{where}: {name} is {found!r}; expected {expected}. Change it there, or bring the model as an"
        " ImageEmbedder of your own with its transform"
    )
