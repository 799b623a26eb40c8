"""The classes of a model: their names, which of them are meant, and what its outputs say of each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curator_dask.errors import ConfigError
from curator_dask.storage import RELATIVE
from curator_dask.words import meant

ACTIVATIONS = ("auto", "softmax", "sigmoid", "none")
"""What is made of a model's outputs: shares that add up to 1, a probability of each class by itself, or nothing."""

#: Names that an error lists.
_LISTED = 12


@dataclass(frozen=True)
class ClassNames:
    """The names of a model's classes.

    Attributes
    ----------
    names
        Of each output, in their order.
    others
        What else each is called, as by its WordNet synset; empty where nothing is.
    """

    names: tuple[str, ...]
    others: tuple[str, ...] = ()

    @classmethod
    def of_timm(cls, config: Mapping[str, Any], count: int) -> ClassNames:
        """Those of a timm model: what its configuration says, else those of ImageNet where it has as many classes.

        Parameters
        ----------
        config
            timm's ``pretrained_cfg`` of the model.
        count
            Outputs of its head.
        """
        names, descriptions = config.get("label_names"), config.get("label_descriptions")
        if not names and count == config.get("num_classes"):
            from timm.data import ImageNetInfo, infer_imagenet_subset

            subset = infer_imagenet_subset({"num_classes": count})
            if subset is not None:
                info = ImageNetInfo(subset)
                names, descriptions = info.label_names(), info.label_descriptions(as_dict=True)
        found = cls.numbered(names or (), count)
        if not isinstance(descriptions, Mapping):
            return found
        return cls(tuple(str(descriptions.get(name, name)) for name in found.names), found.names)

    @classmethod
    def numbered(cls, names: Mapping[Any, Any] | Sequence[Any], count: int) -> ClassNames:
        """Names in a list, or by their number, which may be text; ``class_7`` is one that has none."""
        pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
        by_number = {str(number): str(name) for number, name in pairs}
        return cls(tuple(by_number.get(str(number), f"class_{number}") for number in range(count)))

    def find(self, wanted: str | int, column: str, model: str) -> int:
        """The number of a class, given by its name or its number.

        Raises
        ------
        ConfigError
            There is no such class, or several have the name.
        """
        count = len(self.names)
        if isinstance(wanted, int) and 0 <= wanted < count:
            return wanted
        shorter = [name.partition(",")[0] for name in self.names]  # of ImageNet's "tench, Tinca tinca"
        found: list[int] = []
        for names in (self.names, self.others, shorter):
            found = found or [number for number, name in enumerate(names) if name == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(
                f"classes[{column!r}]: {model} has several classes named {wanted!r}: give the number of one of them,"
                f" {', '.join(map(str, found))}"
            )
        if isinstance(wanted, str) and wanted.isdecimal() and int(wanted) < count:
            return int(wanted)
        more = (
            ""
            if count <= _LISTED
            else f"; and {count - _LISTED} more (curator-dask classify --list shows all)"
        )
        raise ConfigError(
            f"classes[{column!r}] (--class): {model} has no class {wanted!r}{meant(str(wanted), self.names)}. It has"
            f" {'; '.join(self.names[:_LISTED])}{more}"
        )


def read_class_names(given: Sequence[str] | str | os.PathLike[str]) -> tuple[str, ...]:
    """Names that a user gives: a list, or a text file with one in each line.

    Raises
    ------
    ConfigError
        It is neither, or cannot be read.
    """
    if isinstance(given, str | os.PathLike):
        try:
            lines = Path(given).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"class_names={os.fspath(given)!r} (--class-names): expected a list, or a text file with the name of a"
                f" class in each line ({RELATIVE}): {error}"
            ) from None
        given = [line.strip() for line in lines if line.strip()]
    if not isinstance(given, Sequence) or not given or not all(isinstance(each, str) for each in given):
        raise ConfigError(f"class_names={given!r} (--class-names): expected the names of all classes")
    return tuple(given)


def check_classes(classes: Mapping[str, Any]) -> tuple[tuple[str, tuple[str | int, ...]], ...]:
    """Columns and their classes, as `ClassificationModel` takes them, in one form.

    Raises
    ------
    ConfigError
        They are something else.
    """
    if not isinstance(classes, Mapping):
        raise ConfigError(
            f"classes={classes!r}: expected classes by column, as {{'nsfw': 'NSFW', 'person': ['man', 'woman']}}"
        )
    found = []
    for column, given in classes.items():
        every = [given] if isinstance(given, str | int) else given
        good = isinstance(every, Sequence) and all(
            isinstance(each, str | int) and not isinstance(each, bool) and each != "" for each in every
        )
        if not isinstance(column, str) or not column or not good or not len(every):
            raise ConfigError(
                f"classes[{column!r}]={given!r}: expected a column's name, and the name of a class or a list of them"
            )
        twice = [each for each, number in Counter(every).items() if number > 1]
        if twice:
            raise ConfigError(f"classes[{column!r}]: {twice[0]!r} is given twice")
        found.append((column, tuple(every)))
    return tuple(found)


def activated(logits: np.ndarray, activation: str) -> np.ndarray:
    """What outputs (n, classes) come to, float32, by one of `ACTIVATIONS` but ``"auto"``."""
    if activation == "none":
        return logits
    values = logits.astype(np.float64)
    if activation == "softmax":
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        values = powers / powers.sum(axis=1, keepdims=True)
    else:
        values = np.exp(-np.logaddexp(0, -values))
    made: np.ndarray = values.astype(np.float32)
    return made
