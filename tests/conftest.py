"""Fixtures that every test file may use."""

from __future__ import annotations

import os

import dask
import pytest

from curator_dask import backend
from curator_dask.cache import ENCODERS, LOADERS


@pytest.fixture(params=["cpu", "gpu"])
def device(request, monkeypatch):
    """Run the test once a device; without a GPU that is a skip, or a failure if a GPU is required."""
    if request.param == "gpu" and not backend.gpu_count():
        if os.environ.get("CURATOR_DASK_REQUIRE_GPU") == "1":
            pytest.fail("CURATOR_DASK_REQUIRE_GPU=1, but the NVIDIA driver shows no GPU")
        pytest.skip("no GPU")
    monkeypatch.setenv(backend.DEVICE_VARIABLE, request.param)
    _forget_device()
    yield request.param
    _forget_device()


@pytest.fixture
def in_this_process():
    """Compute here and now, without a cluster."""
    with dask.config.set(scheduler="sync"):
        yield


def _forget_device():
    """A process keeps its device for life, and what it has loaded there; a test process changes it."""
    backend.current.cache_clear()
    ENCODERS.clear()
    LOADERS.clear()
