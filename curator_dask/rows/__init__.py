"""Rows of a shard and the images that belong to them."""
