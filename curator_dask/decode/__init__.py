"""Encoded images to pixels: what a model expects of its input, and the loaders that make it."""
