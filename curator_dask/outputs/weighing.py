"""What samples will weigh where an export writes more of them than their members, or less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.outputs.vector_members import BROKEN, VectorMember, lengths_of
from curator_dask.storage import Options
from curator_dask.webdataset.writer import tar_bytes


@dataclass(frozen=True)
class Weighing:
    """How samples that were looked up are weighed.

    Attributes
    ----------
    vectors
        Columns of the rows that become members.
    """

    vectors: tuple[VectorMember, ...] = ()

    def __call__(self, samples: pa.Table, path: str, options: Options) -> tuple[pa.Table, dict[str, Any]]:
        """The samples with the bytes that they will take; and for the report what was seen on the way.

        Parameters
        ----------
        samples
            Of one file, as `SAMPLES` says.
        path, options
            The file of their rows, and for fsspec.
        """
        if not self.vectors:
            return samples, {}
        rows = samples.column("row").to_numpy()
        lengths = lengths_of(path, options, [each.column for each in self.vectors])
        keys = [key.decode("utf-8", "surrogateescape") for key in samples.column("key").to_pylist()]
        weights = samples.column("bytes").to_numpy().copy()
        said = {}
        for member in self.vectors:
            mine = lengths[member.column][rows]
            places = np.flatnonzero(mine >= 0)
            lengths_there, which = np.unique(mine[places], return_inverse=True)
            sizes = np.array([member.size(each) for each in lengths_there.tolist()], np.int64)[which]
            weights[places] += tar_bytes([f"{keys[place]}.{member.suffix}" for place in places], sizes)
            broken = int((mine == BROKEN).sum())
            said[member.suffix] = {
                "members": len(places),
                "null": len(mine) - len(places) - broken,
                "broken": broken,
            }
        place = samples.column_names.index("bytes")
        return samples.set_column(place, samples.schema.field(place), pa.array(weights)), {"vectors": said}
