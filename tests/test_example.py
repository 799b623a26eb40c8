"""The notebook of `examples/` in a kernel of its own, from cluster to new tars, and a cell that is interrupted."""

from __future__ import annotations

import os
import re
import signal
import tarfile
import threading
import time
from pathlib import Path

import pytest
from colours import write_dataset
from leftovers import left_in

nbclient = pytest.importorskip("nbclient", reason="no nbclient")
nbformat = pytest.importorskip("nbformat", reason="no nbformat")

ROOT = Path(__file__).parent.parent
# What the notebook writes, and what stands for it here.
STAND_INS = {
    '"demo/dataset", "local-dir:demo/model", "demo/notebook"': '"dataset", "test_vit", "output"',
    "pretrained=True": "pretrained=False",
    "get_client()": 'get_client("cpu", n_workers=1, env={"OMP_NUM_THREADS": "1"})',
    "bytes > 2000": "bytes > 0",
}
SETUP = """
import os
from colours import SlowColourReader
from curator_dask import get_client
from curator_dask.datasets import ImageTextPairDataset
if "client" not in globals():
    client = get_client("cpu", n_workers=1)
print(os.getpid())
"""
SLOW = """
slow = SlowColourReader(0.1)(ImageTextPairDataset.from_webdataset("slow", rows_per_partition=4))
summary = slow.save_metadata("slow_output")
"""
# A worker finishes the shard that it is at: what there is until then is not yet all.
AT_REST = """
import time
while any(client.run(lambda dask_worker: len(dask_worker.active_threads)).values()):
    time.sleep(0.02)
"""


class Kernel:
    """A notebook's kernel, and the cells that it has run."""

    def __init__(self, client, folder: Path) -> None:
        self._client, self.folder, self.cells = client, folder, client.nb.cells

    def run(self, source: str) -> list:
        """Run a new cell; what it shows."""
        cell = nbformat.v4.new_code_cell(source)
        self.cells.append(cell)
        self._client.execute_cell(cell, len(self.cells) - 1)
        return cell.outputs


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    write_dataset(folder / "dataset", bad={"000010004": b"", "000020001": b"GIF89a"})
    write_dataset(folder / "slow", 2)
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    client = nbclient.NotebookClient(
        nbformat.v4.new_notebook(),
        timeout=200,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    # One thread for models, as in `conftest`.
    with client.setup_kernel(env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}):
        yield Kernel(client, folder)


def html_of(outputs) -> str:
    return "\n".join(each["data"].get("text/html", "") for each in outputs if "data" in each)


def test_the_notebook_runs_from_the_cluster_to_new_tars(kernel):
    notebook = nbformat.read(ROOT / "examples" / "curate.ipynb", 4)
    nbformat.validate(notebook)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert [written for written in STAND_INS if text.count(written) != 1] == []
    shown = []
    for cell in notebook.cells:
        assert not cell.get("outputs"), "the notebook is kept without its outputs"
        if cell.cell_type == "code" and cell.source != "client.close()":
            source = cell.source
            for written, stand_in in STAND_INS.items():
                source = source.replace(written, stand_in)
            shown.append(kernel.run(source))
    _, _, dataset, gallery, embedded, groups, exported = shown
    assert "3 shards" in html_of(dataset)
    assert html_of(gallery).count("<img ") == 12
    bars = [each for each in embedded if "progress" in each.get("data", {}).get("text/html", "")]
    assert len(bars) == 1, "the bar is drawn in place"
    assert 'value="3" max="3"' in html_of(bars)
    assert re.search(r'href="http://[^"]+/status"', html_of(bars))
    assert "damaged GIF" in html_of(embedded)
    assert "outline:" in html_of(groups)
    assert "output/curated" in exported[-1]["text"]
    with tarfile.open(next((kernel.folder / "output" / "curated").glob("*.tar"))) as tar:
        keys = {name.partition(".")[0] for name in tar.getnames()}
    assert keys and "000010004" not in keys


def test_a_cell_that_is_interrupted_goes_on_when_it_is_run_again(kernel):
    output = kernel.folder / "slow_output"
    pid = int(kernel.run(SETUP)[-1]["text"].split()[-1])

    def interrupt() -> None:
        end = time.monotonic() + 60
        while not [*output.glob("*.parquet")] and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(pid, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="KeyboardInterrupt"):
        kernel.run(SLOW)
    thread.join()
    assert "stopped. Finished shards are kept" in html_of(kernel.cells[-1].outputs)
    kernel.run(AT_REST)
    assert left_in(output) == []
    done = len([*output.glob("*.parquet")])
    assert 1 <= done < 6
    kernel.run(SLOW)
    said = kernel.run("print(summary.skipped, summary.written, summary.rows + summary.rows_before)")[0][
        "text"
    ]
    assert said.split() == [str(done), str(6 - done), "20"]
