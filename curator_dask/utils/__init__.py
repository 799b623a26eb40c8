"""Places where scripts of NeMo Curator 0.9 import from."""
