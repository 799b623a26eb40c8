"""``python -m curator_dask``: the command ``curator-dask``."""

from curator_dask.cli import app

if __name__ == "__main__":
    app()
