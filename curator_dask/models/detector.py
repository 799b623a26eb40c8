"""Finding things in images with a model that is on its device, as transformers' own pipelines find them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from curator_dask import backend
from curator_dask.errors import ConfigError
from curator_dask.models import by_shape
from curator_dask.models.by_shape import ByShape
from curator_dask.models.precision import pictures
from curator_dask.models.towers import silent_transformers

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_ALIKE = 0.01
"""Most that the scores of a picture in a batch may differ from those of it alone, as bf16 may round them."""

#: ``model_type`` of models that look for several texts at once, each as if it were alone.
_ALL_AT_ONCE = ("owlvit", "owlv2")


class Detections(NamedTuple):
    """What a model found in an image, the likeliest first.

    Attributes
    ----------
    boxes
        float32 (n, 4): left, top, right, bottom, as shares of the image's width and height, 0 to 1.
    labels
        Names of classes, or prompts.
    scores
        float32 (n,).
    reason
        Why the model could not look; None also where it found nothing.
    """

    boxes: np.ndarray
    labels: list[str]
    scores: np.ndarray
    reason: str | None = None


@dataclass(frozen=True)
class Prepared(by_shape.Prepared):
    """What goes into a model for one image.

    Attributes
    ----------
    tensors
        As the model takes them.
    height, width
        Of the image, pixels.
    """

    height: int
    width: int


class Detector(ByShape[Prepared, Detections]):
    """A model that finds things in images, on this process's device.

    Parameters
    ----------
    model
        As transformers has it, on the device.
    parts
        Its image processor, and its tokenizer where it has prompts.
    info
        What makes its boxes, JSON-able.
    threshold, prompts
        See `DetectionSpec`.
    names
        Of its classes, by number; empty where it has prompts.
    only
        Names of those that are wanted; empty: all.

    Raises
    ------
    ConfigError
        What it finds are no boxes, or have classes without a name.
    Exception
        What the model or its processor raises of a picture.
    """

    done = "looked at"

    def __init__(
        self,
        model: Any,
        parts: Sequence[Any],
        info: dict[str, Any],
        threshold: float,
        prompts: Sequence[str],
        names: Mapping[int, str],
        only: Collection[str],
    ) -> None:
        super().__init__(model, info)
        self._images, self._prompts, self._names, self._only = parts[0], prompts, names, only
        self._threshold = threshold
        self._texts: list[dict[str, torch.Tensor]] = []
        if prompts:
            at_once = model.config.model_type in _ALL_AT_ONCE
            groups = [list(prompts)] if at_once else [[each] for each in prompts]
            self._texts = [dict(parts[1](group, return_tensors="pt", padding=True)) for group in groups]
        with silent_transformers():
            self._try()

    def _prepare(self, image: Image, values: Sequence[str] = ()) -> Prepared:
        made = dict(self._images(images=image, return_tensors="pt"))
        return Prepared(made, image.height, image.width)

    def _failed(self, reason: str) -> Detections:
        return Detections(np.zeros((0, 4), np.float32), [], np.zeros(0, np.float32), reason)

    def _together(self, batch: Sequence[Prepared]) -> list[Detections]:
        found: list[list[tuple[float, str, np.ndarray]]] = [[] for _ in batch]
        bad = [False] * len(batch)
        for prompt, outputs in self._outputs(batch):
            for number, each in enumerate(self._not_finite(outputs)):
                bad[number] |= each
            for number, result in enumerate(self._results(batch, outputs, self._threshold)):
                boxes, scores, labels = (result[name].cpu() for name in ("boxes", "scores", "labels"))
                named = [prompt or self._names[label] for label in labels.tolist()]
                found[number] += zip(scores.tolist(), named, boxes.double().numpy(), strict=True)
        return [
            self._failed(self.not_finite) if is_bad else self._made(each, some)
            for each, some, is_bad in zip(batch, found, bad, strict=True)
        ]

    def _made(self, image: Prepared, found: list[tuple[float, str, np.ndarray]]) -> Detections:
        wanted = [each for each in found if not self._only or each[1] in self._only]
        wanted.sort(key=lambda each: -each[0])
        boxes = np.array([box for _, _, box in wanted], np.float64).reshape(-1, 4)
        size = np.array([image.width, image.height] * 2)
        shares = np.clip(boxes / size, 0, 1).astype(np.float32)
        scores = np.array([score for score, _, _ in wanted], np.float32)
        return Detections(shares, [label for _, label, _ in wanted], scores)

    def _outputs(self, batch: Sequence[Prepared]) -> Iterator[tuple[str | None, Any]]:
        """What the model gives, as its processor takes it; of each prompt what it gives of this alone."""
        import torch

        inputs = self.inputs_of(batch)
        with torch.inference_mode():
            if not self._texts:
                yield None, self._model(**inputs)
                return
            for number, texts in enumerate(self._texts):
                # By image, then by text.
                own = {name: each.repeat(len(batch), 1) for name, each in texts.items()}
                device = self._backend.torch_device
                made = self._model(**inputs, **{name: each.to(device) for name, each in own.items()})
                if len(self._texts) == len(self._prompts):
                    yield self._prompts[number], made
                    continue
                for place, prompt in enumerate(self._prompts):
                    logits = made.logits[..., place : place + 1]
                    yield prompt, SimpleNamespace(logits=logits, pred_boxes=made.pred_boxes)

    def _results(self, batch: Sequence[Prepared], outputs: Any, threshold: float) -> Any:
        import torch

        for name in ("logits", "pred_boxes"):  # in half precision edges of a photograph are pixels apart
            if getattr(outputs, name, None) is not None:
                setattr(outputs, name, getattr(outputs, name).float())
        sizes = torch.tensor([[each.height, each.width] for each in batch])
        return self._images.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)

    def _try(self) -> None:
        """Look at two pictures, alone and together, and at all that is found in them."""
        from PIL import Image

        some = [self._prepare(Image.fromarray(each)) for each in pictures(256, 256)]
        alone = [self._scores([each]) for each in some]
        try:
            together = self._scores(some) if some[0].shapes == some[1].shapes else np.concatenate(alone)
            most = float(np.abs(together - np.concatenate(alone)).max(initial=0))
        except Exception as error:
            if backend.is_out_of_memory(error):
                raise
            most = np.inf
        if not most <= _ALIKE and not any(np.isnan(each).any() for each in alone):
            self.one_at_a_time("what it finds")

    def _scores(self, batch: Sequence[Prepared]) -> np.ndarray:
        """Of each image the scores of all that there is, in order: (images, scores)."""
        rows: list[list[np.ndarray]] = [[] for _ in batch]
        for _, outputs in self._outputs(batch):
            for number, result in enumerate(self._results(batch, outputs, -1.0)):
                boxes, labels = result["boxes"], result["labels"]
                if boxes.ndim != 2 or boxes.shape[-1] != 4:
                    raise ConfigError(f"expected boxes (n, 4) of its processor, found {tuple(boxes.shape)}")
                if not self._prompts and (nameless := {*labels.tolist()} - {*self._names}):
                    raise ConfigError(f"its id2label has no name of the class {min(nameless)}")
                rows[number].append(np.sort(result["scores"].float().cpu().numpy()))
        return np.stack([np.concatenate(each) for each in rows])

    def _not_finite(self, outputs: Any) -> list[bool]:
        """Of each image, whether the model gave NaN; infinite are scores of tokens that there are not."""
        bad = outputs.logits.isnan().flatten(1).any(dim=1) | outputs.pred_boxes.isnan().flatten(1).any(dim=1)
        found: list[bool] = bad.tolist()
        return found
