"""`ImageStatisticsStage`: columns of what the pixels of an image say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from curator_dask import backend
from curator_dask.errors import ConfigError
from curator_dask.image.statistics.names import EVERY
from curator_dask.image.statistics.pixels import MEASURED, PIXELS, Measure
from curator_dask.stages.base import Names, ProcessingStage, TypedNames
from curator_dask.tasks import ImageBatch

_SIZES = ("width", "height", "aspect")


class ImageStatisticsStage(ProcessingStage[ImageBatch, ImageBatch]):
    """Adds statistics of each image to its metadata, and so as columns; the values are those of `ImageStatistics`.

    Before it a stage may have changed the pixels: then the values are of these. What only the file says (``format``,
    ``bytes`` and their like) a stage does not see.

    Parameters
    ----------
    names
        Of ``width``, ``height``, ``aspect`` and the statistics of pixels; all by default but PDQ's.
    prefix
        Before each name, where the dataset has columns of these names.

    Raises
    ------
    ConfigError
        There is no such statistic here.
    """

    name = "image_statistics"
    thread_safe = True

    def __init__(self, names: Sequence[str] | None = None, *, prefix: str = "") -> None:
        here = [*_SIZES, *MEASURED]
        chosen = [*_SIZES, *PIXELS] if names is None else list(dict.fromkeys(names))
        unknown = [name for name in chosen if name not in here]
        if unknown or not chosen or isinstance(names, str):
            raise ConfigError(f"names={names!r}: expected a list of some of {', '.join(here)}")
        self.names = [name for name in here if name in chosen]
        self.prefix = prefix

    def inputs(self) -> Names:
        """Images with their pixels."""
        return ["data"], ["image_data"]

    def outputs(self) -> TypedNames:
        """The columns."""
        return ["data"], {f"{self.prefix}{name}": EVERY[name] for name in self.names}

    def process(self, task: ImageBatch) -> ImageBatch:
        """Measure every image that can be used."""
        measure = Measure(tuple(name for name in self.names if name in MEASURED))
        for image in task.data:
            if image.error is not None or image.image_data is None:
                continue
            height, width = image.image_data.shape[:2]
            found = {"width": width, "height": height, "aspect": width / height}
            if measure.names:
                pixels = backend.tensor_of(image.image_data).cpu().numpy()
                values = measure.of_pixels(pixels).numpy()[np.newaxis]
                columns = measure.columns(values, np.ones(1, bool))
                found |= {name: column[0].as_py() for name, column in columns.items()}
            image.metadata |= {f"{self.prefix}{name}": found[name] for name in self.names}
        return task
