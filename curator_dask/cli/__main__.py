"""``python -m curator_dask.cli``."""

from curator_dask.cli import app

if __name__ == "__main__":
    app()
