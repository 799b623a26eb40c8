"""Fetches in processes of their own, which load little."""

from __future__ import annotations

import os
import resource

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


def fetch_with_few_files(table, output):
    dask.config.set(scheduler="sync")
    few = len(os.listdir("/proc/self/fd")) + 20  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))
    fetch(table, output, connections=64, per_host=64, rows_per_shard=100, retries=0)


def fetch_alone(table, output):
    dask.config.set(scheduler="sync")
    fetch(table, output)
