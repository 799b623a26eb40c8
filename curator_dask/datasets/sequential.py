"""`Sequential`: embedders, classifiers and other callables of a dataset, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from curator_dask.errors import ConfigError


class Sequential:
    """Calls each with what the one before gives; nothing is computed by that.

    Parameters
    ----------
    modules
        Each takes a dataset and gives one, as embedders and classifiers do.

    Raises
    ------
    ConfigError
        One cannot be called.
    """

    def __init__(self, modules: Sequence[Callable[[Any], Any]]) -> None:
        self.modules = list(modules)
        if wrong := [each for each in self.modules if not callable(each)]:
            raise ConfigError(f"modules: expected embedders and classifiers, found {wrong[0]!r}")

    def __call__(self, dataset: Any) -> Any:
        """What the last one gives."""
        for module in self.modules:
            dataset = module(dataset)
        return dataset
