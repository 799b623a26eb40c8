"""Balancing a dataset over clusters of its vectors, and what a recipe says of a balance, by clusters or by concepts."""

from curator_dask.balancing.clusters import ClusterBalanceSummary, balance_clusters

__all__ = ["ClusterBalanceSummary", "balance_clusters"]
