"""What transformers' image processors do to an image, as a `TransformSpec`: read from a model's folder."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError
from curator_dask.models.hub import PROCESSORS, read_json
from curator_dask.models.towers import silent_transformers
from curator_dask.models.weights import first_line

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

#: Processors that resize, crop and normalise, and nothing else; of these one crops by a rule of its own.
PLAIN = ("Beit", "Bit", "CLIP", "DeiT", "MobileNetV1", "MobileNetV2", "Pvt", "Siglip", "ViT")
CONVNEXT = "ConvNext"

_SQUASHES_FROM = 384
"""Pixels of an edge from which ConvNext's processor changes the aspect and crops nothing (its `resize`)."""


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
            if not isinstance(stated, Mapping):
                _refuse(where, "image_processor", stated, "its settings")
            break
    kind = stated.get("image_processor_type") or stated.get("feature_extractor_type") or ""
    if not isinstance(kind, str) or (kind and not kind.startswith(("CLIP", "Siglip"))):
        _refuse(where, "image_processor_type", kind, "one of CLIP's or SigLIP's")
    return _transform({**_DEFAULTS[processor], **stated}, where, _sizes)


def read_any_transform(folder: Path) -> TransformSpec:
    """The transform that a folder states, of any of transformers' processors that a `TransformSpec` can express.

    What a file leaves out, the processor's type among it, is what transformers takes for it.

    Parameters
    ----------
    folder
        With a model's ``config.json`` and ``preprocessor_config.json``.

    Raises
    ------
    ConfigError
        It is another processor, or states something that cannot be expressed; the message names it.
    """
    import transformers

    where = next((folder / name for name in PROCESSORS if (folder / name).is_file()), None)
    if where is None:
        raise ConfigError(
            f"{folder}: expected a {PROCESSORS[0]} beside the model, which says what is done to images. Put it there,"
            " as save_pretrained of the model's image processor writes it"
        )
    try:
        with silent_transformers():
            processor = transformers.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        raise ConfigError(
            f"{where}: transformers (here {transformers.__version__}) cannot make an image processor of it:"
            f" {type(error).__name__}: {first_line(error)}"
        ) from error
    found = type(processor).__name__
    kind = re.sub(r"ImageProcessor(Fast|Pil)?$", "", found)
    if kind not in (*PLAIN, CONVNEXT):
        expected = ", ".join(f"{name}ImageProcessor" for name in sorted((*PLAIN, CONVNEXT)))
        _refuse(where, "image_processor_type", found, f"one of {expected}")
    return _transform(processor.to_dict(), where, _sizes_of_convnext if kind == CONVNEXT else _sizes)


def _transform(settings: Mapping[str, Any], where: Path, sizes: Any) -> TransformSpec:
    """Of settings that are whole; `sizes` gives size, crop_pct and crop_mode.

    A null is no default: transformers takes it for false, and refuses to work with it where it needs a value.
    """
    required = {"do_resize": True, "do_rescale": True, "do_pad": False, "use_square_size": False}
    for name, wanted in required.items():
        found = settings.get(name, wanted)
        if (False if found is None else found) is not wanted:
            _refuse(where, name, found, str(wanted))
    factor, resample = settings.get("rescale_factor"), settings.get("resample")
    if not isinstance(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        _refuse(where, "rescale_factor", factor, "1/255")
    if isinstance(resample, bool) or not isinstance(resample, int) or resample not in range(len(_RESAMPLE)):
        _refuse(where, "resample", resample, "a number of Pillow's filters, 0 to 5")
    size, crop_pct, crop_mode = sizes(settings, where)
    normalizes = settings.get("do_normalize")
    return TransformSpec(
        size=size,
        interpolation=_RESAMPLE[resample],
        mean=_of_channels(settings, "image_mean", where) if normalizes else (0.0, 0.0, 0.0),
        std=_of_channels(settings, "image_std", where) if normalizes else (1.0, 1.0, 1.0),
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )


def _of_channels(settings: Mapping[str, Any], name: str, where: Path) -> tuple[float, float, float]:
    """Three numbers; one stands for all three channels, as in transformers."""
    value = settings.get(name)
    each = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    if len(each) != 3 or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in each):
        _refuse(where, name, value, "a number for each of three channels, or one for all")
    return each[0], each[1], each[2]


def _sizes(settings: Mapping[str, Any], where: Path) -> tuple[tuple[int, int], float, str]:
    """Size, crop_pct and crop_mode of the transform."""
    size = settings.get("size")
    if isinstance(size, int):
        square = settings.get("default_to_square", False)
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    crops = settings.get("do_center_crop")
    crop = _height_and_width(settings.get("crop_size"), "crop_size", where) if crops else None
    if not isinstance(size, Mapping) or set(size) not in ({"shortest_edge"}, {"height", "width"}):
        _refuse(where, "size", size, "a number, shortest_edge, or height and width")
    if "height" in size:
        whole = _height_and_width(size, "size", where)
        if crop in (None, whole):
            return whole, 1.0, "squash"
        crop_pct = crop_pct_of(crop[0], whole[0])
        borders = [resized - kept for resized, kept in zip(whole, crop, strict=True)]
        same = math.floor(crop[1] / crop_pct) == whole[1]
        if not same or any(border < 0 or border % 2 for border in borders):
            _refuse(
                where, "crop_size", list(crop), f"{list(whole)}, the size of the resized image, or its middle"
            )
        return crop, crop_pct, "squash"
    if crop is None:
        _refuse(
            where,
            "do_center_crop",
            settings.get("do_center_crop", False),
            "True, as with shortest_edge images would differ in size",
        )
    if crop[0] != crop[1]:
        _refuse(where, "crop_size", list(crop), "a square, as size is the shortest edge")
    edge = size["shortest_edge"]
    if not isinstance(edge, int) or edge < 1:
        _refuse(where, "size", size, "a whole number of pixels")
    if crop[0] > edge:  # transformers' two processors disagree on where the border is
        _refuse(where, "crop_size", list(crop), f"at most {edge}, the shortest edge")
    return crop, crop_pct_of(crop[0], edge), "center_floor"


def _sizes_of_convnext(settings: Mapping[str, Any], where: Path) -> tuple[tuple[int, int], float, str]:
    """The same of ConvNext's processor: below 384 pixels the middle of an image, else all of it."""
    size = settings.get("size")
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
    if not isinstance(edge, int) or edge < 1:
        _refuse(where, "size", size, "shortest_edge, a whole number of pixels")
    if settings.get("do_center_crop"):
        _refuse(where, "do_center_crop", True, "False, as ConvNext's processor crops by crop_pct")
    if edge >= _SQUASHES_FROM:
        return (edge, edge), 1.0, "squash"
    crop_pct = settings.get("crop_pct")
    if not isinstance(crop_pct, int | float) or not 0 < crop_pct <= 1:
        _refuse(where, "crop_pct", crop_pct, "a number above 0, 1 at most")
    return (edge, edge), float(crop_pct), "center_floor"


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
    shown = "null" if found is None else repr(found)
    raise ConfigError(
        f"{where}: {name} is {shown}; expected {expected}. Change it there, or bring the model as an"
        " ImageEmbedder of your own with its transform: its outputs are vectors then"
    )
