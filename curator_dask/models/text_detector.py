"""Finding text in images with PaddleOCR's detectors as transformers has them: a map of where text is, and its regions.

After DB (Liao et al. 2020, https://arxiv.org/abs/1911.08947): what of the map is above a threshold is taken apart into
regions, each gets the smallest rectangle around it, turned or not, the map's mean in that is its score, and the
rectangle grows, as the map is trained to be smaller than the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask.errors import ConfigError
from curator_dask.models.detector import Detector, Prepared

if TYPE_CHECKING:
    from PIL.Image import Image

#: Of transformers' post-processing, and PaddleOCR's pipeline: a region's score is at least so much.
TEXT_THRESHOLD = 0.6
#: The same: the map is more within a region, the longest side of a rectangle that is too small in pixels of the map, by
#: how much of its area over its perimeter it grows, and how many regions an image has at most.
_REGIONS = {"threshold": 0.3, "min_size": 3, "unclip_ratio": 1.5, "max_candidates": 1000}

_LONGEST = 32767  # pixels: transformers gives corners as int16

_TYPES = re.compile(r"pp_ocrv\d+_\w+_det")


def finds_text(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of one of these detectors."""
    return _TYPES.fullmatch(str(config.get("model_type"))) is not None


def check_opencv(model: str) -> None:
    """Raise ConfigError where OpenCV is not installed, with which transformers takes a map apart."""
    if find_spec("cv2") is None:
        raise ConfigError(
            f"{model}: transformers finds text with OpenCV, which is not installed here: pip install"
            " 'curator-dask[ocr]', or opencv-python-headless"
        )


class TextDetector(Detector):
    """One that finds text; a box is the hull of the rectangle, which may be turned."""

    #: What makes regions of a map, for records.
    regions = f"of a map above {_REGIONS['threshold']:g}, grown by {_REGIONS['unclip_ratio']:g}"

    def _prepare(self, image: Image, values: Sequence[str] = ()) -> Prepared:
        made = dict(self._images(images=image, return_tensors="pt"))
        made.pop("target_sizes", None)  # its own note of the image's size, none of the model's inputs
        return Prepared(made, image.height, image.width)

    def _results(self, batch: Sequence[Prepared], outputs: Any, threshold: float) -> list[dict[str, Any]]:
        import torch

        maps = SimpleNamespace(last_hidden_state=outputs.last_hidden_state.float().cpu())
        scales = [min(1.0, _LONGEST / max(each.height, each.width)) for each in batch]
        sizes = [[each.height * scale, each.width * scale] for each, scale in zip(batch, scales, strict=True)]
        found: list[dict[str, Any]] = self._images.post_process_object_detection(
            maps, target_sizes=torch.tensor(sizes), box_threshold=threshold, **_REGIONS
        )
        for result, scale in zip(found, scales, strict=True):
            corners = result["boxes"].double().reshape(-1, 4, 2) / scale
            result["boxes"] = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
        return found

    def _scores(self, batch: Sequence[Prepared]) -> np.ndarray:
        """Of each image its map, once what it comes to was looked at."""
        ((_, outputs),) = self._outputs(batch)
        found = self._results(batch, outputs, 0.0)
        if {*(label for each in found for label in each["labels"].tolist())} - {*self._names}:
            raise ConfigError("its id2label has no name of the class 0")
        maps: np.ndarray = outputs.last_hidden_state.float().flatten(1).cpu().numpy()
        return maps

    def _not_finite(self, outputs: Any) -> list[bool]:
        found: list[bool] = outputs.last_hidden_state.isnan().flatten(1).any(dim=1).tolist()
        return found
