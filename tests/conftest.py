"""Fixtures that every test file may use."""

from __future__ import annotations

import os

import pytest

from curator_dask import backend


@pytest.fixture(params=["cpu", "gpu"])
def device(request, monkeypatch):
    """Run the test once a device; without a GPU that is a skip, or a failure if a GPU is required."""
    if request.param == "gpu" and not backend.gpu_count():
        if os.environ.get("CURATOR_DASK_REQUIRE_GPU") == "1":
            pytest.fail("CURATOR_DASK_REQUIRE_GPU=1, but the NVIDIA driver shows no GPU")
        pytest.skip("no GPU")
    monkeypatch.setenv(backend.DEVICE_VARIABLE, request.param)
    backend.current.cache_clear()
    yield request.param
    backend.current.cache_clear()
