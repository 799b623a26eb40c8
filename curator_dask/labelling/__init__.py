"""A page to label images by looking, for a browser without a network: what `fit` makes a head of one's own from."""

from curator_dask.labelling.making import LabelSummary, label_page

__all__ = ["LabelSummary", "label_page"]
