"""Which statistics of images there are, and which are meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from curator_dask.errors import ConfigError
from curator_dask.image.statistics.header import HEADER
from curator_dask.image.statistics.metadata import METADATA
from curator_dask.image.statistics.pdq import PDQ
from curator_dask.image.statistics.pixels import PIXELS

#: All statistics of the image itself, with the Arrow types of their columns.
STATISTICS: Mapping[str, pa.DataType] = {**HEADER, **PIXELS}
#: And those that have to be asked for: PDQ, and what its file says of its origin and rights.
EVERY: Mapping[str, pa.DataType] = {**STATISTICS, **PDQ, **METADATA}
#: What stands for several.
GROUPS: Mapping[str, Mapping[str, pa.DataType]] = {"all": STATISTICS, "metadata": METADATA}


def chosen_names(names: Sequence[str] | None) -> list[str]:
    """The statistics that are meant, in their order: all of `STATISTICS` for None.

    Raises
    ------
    ConfigError
        There is no such statistic.
    """
    given = ["all"] if names is None else list(names)
    unknown = [name for name in given if name not in EVERY and name not in GROUPS]
    if unknown or not given or isinstance(names, str):
        raise ConfigError(
            f"names={names!r} (--statistics): expected a list of some of {', '.join(STATISTICS)}; of"
            f" {', '.join(PDQ)}; of metadata (all of them) or of {', '.join(METADATA)}"
        )
    chosen = {each for name in given for each in GROUPS.get(name, (name,))}
    return [name for name in EVERY if name in chosen]
