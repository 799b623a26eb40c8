"""Models: encoders, their weights, and the per-process cache."""
