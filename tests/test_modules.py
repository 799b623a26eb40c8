"""A module of a user's that the workers lack: said before any work, by its name and the worker's."""

from __future__ import annotations

import importlib
import sys

import pytest
from colours import ColourReader, write_dataset

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ClusterError

CODE = """
from colours import ColourReader

class Mine(ColourReader):
    pass

def same(frame):
    return frame
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """One that this process can import, and workers that are there already cannot."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/only_here.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield importlib.import_module("only_here")
    sys.modules.pop("only_here")


@pytest.mark.parametrize("what", ["step", "function"])
def test_a_module_that_workers_lack(client, tmp_path, module, what):
    write_dataset(tmp_path / "data", shards=1)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    if what == "step":
        dataset = module.Mine()(dataset)
    else:
        frame = dataset.metadata.map_partitions(module.same, meta=dataset.metadata._meta)
        dataset = ColourReader()(dataset.with_metadata(frame))
    with pytest.raises(
        ClusterError, match=r"worker tcp\S+ cannot import only_here, which (Mine|same) needs.*PYTHONPATH"
    ):
        dataset.save_metadata(tmp_path / "out")
    assert not (tmp_path / "out").exists()
