"""What a page shows."""

from __future__ import annotations

from dataclasses import dataclass, field

from curator_dask.report.folder import Folder
from curator_dask.report.head import Head
from curator_dask.report.looking import Look
from curator_dask.report.measures import Measure
from curator_dask.report.pictures import Pictures


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
        Columns that have thresholds, and those that are too many.
    pictures
        All of the page.
    seconds
        By step, what it took.
    """

    folder: Folder
    look: Look
    head: Head
    measures: list[Measure] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    pictures: Pictures = field(default_factory=Pictures)
    seconds: dict[str, float] = field(default_factory=dict)
