"""Holding a stage to what it says: pixels and vectors that it does not say it makes stay as they are.

An embedding's identity counts only the stages that touch pixels or vectors, so one that does so unsaid would make
vectors that are taken for others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from curator_dask.errors import ConfigError
from curator_dask.stages.base import Stage, makes_pixels_or, names_of
from curator_dask.tasks import EMBEDDING, ImageBatch, Task


@contextmanager
def untouched(stage: Stage, task: Task[Any]) -> Iterator[None]:
    """Within the block a stage works on a task, whose pixels and vectors it leaves alone if it says so.

    NumPy arrays cannot be written to meanwhile; others in their place are found afterwards.

    Raises
    ------
    ConfigError
        The stage has put others in their place.
    """
    fields = [name for name in ("image_data", EMBEDDING) if not makes_pixels_or(stage, name)]
    if "image_data" in fields and "image_data" in stage.removes():
        fields.remove("image_data")
    images = list(task.data) if isinstance(task, ImageBatch) and isinstance(task.data, list) else []
    lent = [(image, name, there, _read_only(there)) for image in images for name in fields
            if (there := getattr(image, name, None)) is not None]  # fmt: skip
    for image, name, _, shown in lent:
        setattr(image, name, shown)
    try:
        yield
    except ValueError as error:
        if "read-only" in str(error):
            raise _unsaid(stage, fields) from error
        raise
    for image, name, there, shown in lent:
        now = getattr(image, name, None)
        if now is shown:
            setattr(image, name, there)
        elif now is not None:
            raise _unsaid(stage, [name])


def _read_only(array: Any) -> Any:
    """A NumPy array that cannot be written to, of the same memory; another array as it is."""
    if not isinstance(array, np.ndarray):
        return array
    view = array.view()
    view.flags.writeable = False
    return view


def _unsaid(stage: Stage, fields: list[str]) -> ConfigError:
    names = " or ".join(fields)
    return ConfigError(
        f"stage {names_of(stage)}: process() changes {names} of an image, and outputs() does not say so. Add it there"
        f" (['data'], {fields!r}): what is embedded after it is then known as another embedding"
    )
