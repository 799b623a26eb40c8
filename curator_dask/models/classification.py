"""Image classification models: a model that gives an output a class, with the names of its classes.

A `ClassificationSpec` (small, frozen, hashable) travels; its `build` makes the `Classification` on the worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from curator_dask.errors import ConfigError
from curator_dask.fingerprint import fingerprint
from curator_dask.models.classes import ClassNames, activated
from curator_dask.models.encoders import Encoder
from curator_dask.models.precision import MOST_SHIFT, most_shift
from curator_dask.models.sources import State
from curator_dask.models.timm import TimmSpec

if TYPE_CHECKING:
    import torch


class LogitsEncoder(Encoder):
    """An encoder whose vectors are outputs for classes: half precision is kept where it changes no probability."""

    fine = True

    def is_enough(self, half: torch.Tensor, full: torch.Tensor, enough: float) -> tuple[bool, None]:
        """Whether probabilities stay what they are (`MOST_SHIFT`); cosines of outputs say little of that."""
        return most_shift(half, full) <= MOST_SHIFT, None


class LogitsSpec(Protocol):
    """What describes a model that classifies images; hashable and picklable."""

    @property
    def model_name(self) -> str:
        """By which it is found."""

    @property
    def source_state(self) -> State | None:
        """Of the files that it is built of; see `curator_dask.cache.SpecCache.refresh`."""

    def build_logits(self) -> tuple[Encoder, ClassNames, str]:
        """Make it on this process's device: the encoder, what its outputs are called, and their activation."""

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class TimmLogits:
    """A timm model with its classifier.

    Attributes
    ----------
    spec
        Of the model; its ``output`` is ``"logits"``.
    """

    spec: TimmSpec

    @property
    def model_name(self) -> str:
        """By which timm finds it."""
        return self.spec.model_name

    @property
    def source_state(self) -> State | None:
        """Of the files that the model is built of; see `curator_dask.cache.SpecCache.refresh`."""
        return self.spec.source_state

    def build_logits(self) -> tuple[Encoder, ClassNames, str]:
        """See `LogitsSpec`: of one class its probability, of several the shares."""
        encoder = self.spec.build(LogitsEncoder)
        config: Any = getattr(encoder.model, "pretrained_cfg", {})
        names = ClassNames.of_timm(config, encoder.dim)
        return encoder, names, "softmax" if encoder.dim > 1 else "sigmoid"


class Seen(NamedTuple):
    """What a model sees in images.

    Attributes
    ----------
    best
        Number of the likeliest class of each: int64 (n,).
    score
        What its output comes to: float32 (n,).
    chosen
        What those of the chosen classes come to: float32 (n, columns).
    finite
        Whether all outputs of an image are numbers: bool (n,).
    """

    best: np.ndarray
    score: np.ndarray
    chosen: np.ndarray
    finite: np.ndarray


class Classification:
    """A model that classifies, on this process's device.

    Parameters
    ----------
    encoder
        Gives its outputs.
    names
        Of its classes.
    activation
        Of `curator_dask.models.classes.ACTIVATIONS`, but ``"auto"``.
    chosen
        For each column the numbers of its classes, in their order.
    """

    def __init__(
        self, encoder: Encoder, names: ClassNames, activation: str, chosen: tuple[tuple[int, ...], ...]
    ) -> None:
        self.encoder, self.names, self.activation = encoder, names.names, activation
        self.chosen = chosen

    @property
    def info(self) -> dict[str, Any]:
        """What makes its columns, JSON-able: as of an encoder, with the activation and the classes."""
        told = self.encoder.info.to_dict()
        del told["dim"], told["normalized"]
        digest = fingerprint({"classes": self.names})[:12]
        return {**told, "activation": self.activation, "classes": f"{len(self.names)} [{digest}]"}

    def __call__(self, pixels: torch.Tensor) -> Seen:
        """What it sees in a batch, as an `Encoder` takes it."""
        logits = self.encoder(pixels)
        finite = np.isfinite(logits).all(axis=1)
        values = activated(np.where(finite[:, None], logits, 0), self.activation)
        best = values.argmax(axis=1)
        chosen = np.empty((len(values), len(self.chosen)), np.float32)
        for number, classes in enumerate(self.chosen):
            chosen[:, number] = values[:, classes].sum(axis=1, dtype=np.float64)
        return Seen(best, values[np.arange(len(values)), best], chosen, finite)

    def close(self) -> None:
        """Let the model and its device memory go."""
        self.encoder.close()


@dataclass(frozen=True)
class ClassificationSpec:
    """Everything that decides which columns a classification model gives of an image.

    Attributes
    ----------
    model
        Which.
    classes
        By column, classes whose probabilities are added up: names, or numbers.
    activation
        One of `curator_dask.models.classes.ACTIVATIONS`.
    class_names
        In the place of the model's own; None: these.
    """

    model: LogitsSpec
    classes: tuple[tuple[str, tuple[str | int, ...]], ...] = ()
    activation: str = "auto"
    class_names: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return self.model.model_name

    @property
    def source_state(self) -> State | None:
        """Of the files that the model is built of; see `curator_dask.cache.SpecCache.refresh`."""
        return self.model.source_state

    def build(self) -> Classification:
        """Make it on this process's device.

        Raises
        ------
        ConfigError
            The model has no such classes, no classifier, or no probabilities to be added up.
        WeightsError
            The weights cannot be had.
        """
        encoder, names, own = self.model.build_logits()
        try:
            return self._of(encoder, names, own)
        except ConfigError:
            encoder.close()
            raise

    def _of(self, encoder: Encoder, names: ClassNames, own: str) -> Classification:
        activation = own if self.activation == "auto" else self.activation
        if self.class_names is not None:
            if len(self.class_names) != encoder.dim:
                raise ConfigError(
                    f"class_names (--class-names): expected {encoder.dim} names, one for each class of {self}, found"
                    f" {len(self.class_names)}"
                )
            names = ClassNames(self.class_names)
        if activation == "softmax" and encoder.dim == 1:
            raise ConfigError(
                f"activation='softmax': {self} has one output, whose share would always be 1. Use 'sigmoid' or 'auto'"
            )
        for column, classes in self.classes:
            if len(classes) > 1 and activation != "softmax":
                raise ConfigError(
                    f"classes[{column!r}]: with activation {activation!r}"
                    f"{' (that of the model)' if self.activation == 'auto' else ''} the outputs of {self} are no shares"
                    " that can be added up: give each class a column of its own"
                )
        chosen = tuple(
            tuple(sorted(names.find(each, column, str(self)) for each in classes))
            for column, classes in self.classes
        )
        for (column, _), numbers in zip(self.classes, chosen, strict=True):
            if len({*numbers}) < len(numbers):
                raise ConfigError(f"classes[{column!r}]: one class of {self} is given twice")
        return Classification(encoder, names, activation, chosen)
