"""What a page shows."""

from __future__ import annotations

from dataclasses import dataclass, field

from curator_dask.report.categories import Category
from curator_dask.report.folder import Folder
from curator_dask.report.head import Head
from curator_dask.report.looking import Look
from curator_dask.report.mapping import Map
from curator_dask.report.measures import Measure
from curator_dask.report.pictures import Pictures
from curator_dask.report.twins import Twins

#: Rows that are shown as outliers.
OUTLIERS = 24


@dataclass
class Report:
    """What a page shows.

    Attributes
    ----------
    folder, look
        The output, and what its files say.
    head
        Of the page.
    measures, others
        Columns that have thresholds, and why other columns of numbers have none.
    categories
        Columns whose values come again and again.
    pictures
        All of the page.
    map
        Of the sample's vectors.
    twins
        Duplicates; None where no table of them was given.
    seconds
        By step, what it took.
    """

    folder: Folder
    look: Look
    head: Head
    measures: list[Measure] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    categories: list[Category] = field(default_factory=list)
    pictures: Pictures = field(default_factory=Pictures)
    map: Map = field(default_factory=Map)
    twins: Twins | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def outliers(self) -> list[tuple[int, float, str]]:
        """The rows furthest from the centre of their cluster: number in the sample, how far, name of the cluster."""
        found = self.map
        return [
            (int(found.rows[at]), float(found.distances[at]), found.names[int(found.clusters[at])])
            for at in found.outliers[:OUTLIERS].tolist()
        ]
