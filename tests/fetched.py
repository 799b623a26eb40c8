"""Fetches in processes of their own, which load little."""

from __future__ import annotations

import dask

from curator_dask.fetching import fetch_images


def fetch(table, output, **settings):
    return fetch_images(
        table,
        output,
        **{
            "caption_column": "caption",
            "allow_private": True,
            "rows_per_shard": 4,
            "timeout": 5,
            "retries": 1,
            **settings,
        },
    )


def fetch_alone(table, output):
    dask.config.set(scheduler="sync")
    fetch(table, output)
