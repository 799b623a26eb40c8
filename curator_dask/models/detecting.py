"""Models that find things in images: transformers' for object detection, and those that find what a text names.

A `DetectionSpec` (small, frozen, hashable) travels; its `build` makes the `Detector` on the worker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator_dask import backend
from curator_dask.errors import ConfigError, CuratorError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.record import BOXES
from curator_dask.models.detector import Detector
from curator_dask.models.hub import CONFIG, PROCESSORS, find_beside, find_folder, read_json
from curator_dask.models.parts import load_part, name_of_parts
from curator_dask.models.sources import OfTransformers
from curator_dask.models.text_detector import TEXT_THRESHOLD, TextDetector, check_opencv, finds_text
from curator_dask.models.tokens import TOKENIZERS
from curator_dask.models.towers import load_whole
from curator_dask.models.weights import first_line, state_digest
from curator_dask.words import meant

FILES = (*PROCESSORS, *TOKENIZERS)
"""What a model that is asked has besides its weights, as transformers writes it; the last is always there."""

#: Scores of what is found are larger, where nothing is said: of classes, and of prompts, as in transformers' pipelines.
THRESHOLD, PROMPT_THRESHOLD = 0.5, 0.1

#: Of a configuration, what changes no output: all but the names of the classes, which are one.
_NO_MATTER = re.compile(r"_.*|label2id|architectures|transformers_version|(torch_)?dtype")
#: Take texts in another way than transformers' pipeline gives them.
_NOT_ASKED = frozenset({"omdet-turbo"})


@dataclass(frozen=True)
class DetectionSpec(OfTransformers):
    """Everything that decides what is found in an image.

    Attributes
    ----------
    model_name
        A folder with ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` as transformers writes
        them, and of a model that is asked its tokenizer's files; or a repository of the hub: ``"org/repo"``,
        ``"org/repo@revision"``.
    model_dir
        See `curator_dask.models.hub.find_folder`.
    prompts
        What is looked for, each by itself; empty: the classes of the model.
    threshold
        Scores of what is found are larger; None: `THRESHOLD`, or what else is usual of such a model.
    only
        Of the classes; empty: all.
    dtype
        Of `curator_dask.models.precision.DTYPES`.
    """

    model_name: str
    model_dir: str | None = None
    prompts: tuple[str, ...] = ()
    threshold: float | None = None
    only: tuple[str, ...] = ()
    dtype: str = "auto"

    def fetch(self) -> Path:
        """The folder with weights and processor; fetched if it is nowhere, without loading anything.

        Raises
        ------
        ConfigError
            The model is none of transformers' that find things, or is to be asked otherwise.
        WeightsError
            The weights cannot be had.
        """
        folder = find_folder(
            self.model_name,
            self.model_dir,
            lambda config: check_config(config, self.model_name, bool(self.prompts)),
        )
        if self.prompts:
            find_beside(self.model_name, self.model_dir, folder, FILES)
        return folder

    def build(self) -> Detector:
        """Make it on this process's device.

        Raises
        ------
        ConfigError
            It is no such model, or has no such classes.
        WeightsError
            The weights cannot be had, or do not fit the configuration.
        """
        import torch
        import transformers

        folder = self.fetch()
        stated = read_json(folder / CONFIG)
        check_config(stated, str(folder), bool(self.prompts))
        is_text = finds_text(stated)
        if is_text:
            check_opencv(str(folder))
        threshold = self.threshold
        if threshold is None:
            threshold = PROMPT_THRESHOLD if self.prompts else TEXT_THRESHOLD if is_text else THRESHOLD
        here = backend.current()
        dtype: Any = self.dtype if self.dtype != "auto" or here.device == "gpu" else "float32"
        model = load_whole(
            transformers.AutoModelForZeroShotObjectDetection
            if self.prompts
            else transformers.AutoModelForObjectDetection,
            folder,
            "find things in images",
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=False,
        )
        parts = [load_part(folder, "AutoImageProcessor", FILES)]
        parts += [load_part(folder, "AutoTokenizer", FILES)] if self.prompts else []
        names = {} if self.prompts else {int(each): str(name) for each, name in model.config.id2label.items()}
        only = _chosen(self.only, names, str(self))
        decides = {name: value for name, value in stated.items() if not _NO_MATTER.fullmatch(name)}
        info = {
            "model": f"{type(model).__name__} [{fingerprint(decides)[:12]}]",
            "source": self.model_name,
            "weights": state_digest(model),
            "processor": name_of_parts(folder, parts, {*FILES} if self.prompts else {*PROCESSORS}),
            "prompt": ", ".join(map(repr, self.prompts)) or None,
            "detection": f"scores above {threshold:g}"
            + (f" {TextDetector.regions}" if is_text else "")
            + (f", {', '.join(sorted(only))} alone" if only else ""),
            "output": BOXES,
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        }
        try:
            kind = TextDetector if is_text else Detector
            return kind(model.to(here.torch_device).eval(), parts, info, threshold, self.prompts, names, only)
        except Exception as error:
            if backend.is_out_of_memory(error):
                raise
            said = (
                str(error)
                if isinstance(error, CuratorError)
                else f"{type(error).__name__}: {first_line(error)}"
            )
            raise ConfigError(
                f"{folder}: {type(model).__name__} cannot find things in a picture: {said}"
            ) from error


def check_config(config: Mapping[str, Any], name: str, is_asked: bool) -> None:
    """Raise ConfigError where a ``config.json`` is of no model of transformers' that finds things in images.

    Parameters
    ----------
    config
        What it says.
    name
        Of the model.
    is_asked
        Prompts are given.
    """
    from transformers.models.auto import modeling_auto as known

    found = config.get("model_type")
    if found in known.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
        if is_asked:
            raise ConfigError(
                f"{name}: {found} finds its own classes, and takes no prompts (prompts, --prompt): only (--only)"
                " chooses some of these"
            )
        return
    if found in known.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES and found not in _NOT_ASKED:
        if not is_asked:
            raise ConfigError(
                f"{name}: {found} looks for what it is asked: give prompts (--prompt), such as 'a human face'"
            )
        return
    raise ConfigError(
        f"{name}: its {CONFIG} has the model_type {found!r}, which is none of transformers' that find things in images"
        " (AutoModelForObjectDetection), such as DETR, RT-DETR, YOLOS or PP-OCRv5's detectors of text, or what a text"
        " names (AutoModelForZeroShotObjectDetection), such as OWLv2 or Grounding DINO"
    )


def _chosen(only: tuple[str, ...], names: Mapping[int, str], model: str) -> frozenset[str]:
    """The names of classes as the model has them."""
    known = sorted({*names.values()})
    spelled = {name.lower(): name for name in known}
    found = set()
    for name in only:
        if name not in known and name.lower() not in spelled:
            listed = ", ".join(known[:8]) + ", …" * (len(known) > 8)
            raise ConfigError(
                f"only (--only): {model} has no class {name!r}{meant(name, known)}. It has {listed}"
            )
        found.add(name if name in known else spelled[name.lower()])
    return frozenset(found)
