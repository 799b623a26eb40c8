"""``python -m curator_dask.cli``."""

from curator_dask.cli import app

app()
