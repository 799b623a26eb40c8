"""Sinks: the contract, held for the package's own, and for a small one that a user might write."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from colours import ColourReader, check_colours, write_dataset

from curator_dask import backend
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import OutputError
from curator_dask.outputs.parquet import ParquetSink
from curator_dask.outputs.writing import Output
from curator_dask.runs.reports import report_frame, report_of, report_row
from curator_dask.runs.run import run
from curator_dask.runs.sink import Plan
from curator_dask.runs.targets import Target
from curator_dask.testing import SinkTests

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sinks") / "data"
    write_dataset(folder, 3, 6, bad={"000010003": b"GIF"})
    return folder


@dataclass(frozen=True)
class LinesSink:
    """A sink of JSON lines: keys and vectors, a file a shard."""

    folder: str

    @property
    def place(self):
        return self.folder

    @contextmanager
    def open(self):
        lock = Path(self.folder, "lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise OutputError(f"{self.folder}: another run is writing there") from None
        try:
            yield
        finally:
            lock.unlink()

    def unwritten(self, lineage):
        return len(lineage.ranges)

    def plan(self, job):
        targets = [
            Target(part.name, f"{self.folder}/{part.name}.jsonl", job.lineage.recipe, None, None, None)
            for part in job.lineage.ranges
        ]
        writer = WriteLines(job.id_col, tuple(job.kept))
        return Plan(
            targets, [number for number, each in enumerate(targets) if not writer.known(each)], writer
        )

    def close(self, plan, summary):
        """Nothing is left."""


@dataclass(frozen=True)
class WriteLines:
    id_col: str
    kept: tuple[str, ...]
    unfinished: bool = False

    def write(self, frame, target):
        table = backend.frame_to_arrow(frame)
        report = report_of(target.name, table, self.id_col)
        lines = [json.dumps(row) for row in table.select(list(self.kept)).to_pylist()]
        head = json.dumps({"made_by": "" if self.unfinished else target.fingerprint, "report": report})
        Path(f"{target.path}.tmp").write_text("\n".join([head, *lines]))
        Path(f"{target.path}.tmp").replace(target.path)
        return report_row(report)

    def known(self, target):
        if not Path(target.path).exists():
            return None
        head = json.loads(Path(target.path).read_text().partition("\n")[0])
        return report_row(head["report"]) if head["made_by"] == target.fingerprint else None

    def reusable(self, target):
        return None

    def give_up(self, reason):
        return WriteLines(self.id_col, self.kept, True)

    def __call__(self, frame, target_frame):
        row = self.write(frame, Target.from_json(target_frame["target"].iloc[0]))
        return report_frame(json.loads(row["target"]))


class TestParquet(SinkTests):
    @pytest.fixture
    def sink(self, tmp_path):
        (tmp_path / "out").mkdir()
        return ParquetSink(Output(str(tmp_path / "out"), None, False, False, False))

    @pytest.fixture
    def dataset(self, folder):
        return ImageTextPairDataset.from_webdataset(folder)

    def read(self, sink):
        return [
            key
            for path in Path(sink.place).glob("*.parquet")
            for key in pq.read_table(path)["key"].to_pylist()
        ]


class TestParquetOfParts(TestParquet):
    @pytest.fixture
    def dataset(self, folder):
        return ImageTextPairDataset.from_webdataset(folder, rows_per_partition=4)


class TestLines(TestParquet):
    @pytest.fixture
    def sink(self, tmp_path):
        return LinesSink(str(tmp_path / "lines"))

    def read(self, sink):
        paths = Path(sink.place).glob("*.jsonl")
        return [json.loads(line)["key"] for path in paths for line in path.read_text().splitlines()[1:]]


class Doubles(LinesSink):
    """Does what is finished again, under another name."""

    def plan(self, job):
        plan = super().plan(job)
        number = len(list(Path(self.folder).glob("*.jsonl")))
        for each in plan.targets:
            object.__setattr__(each, "path", f"{each.path.removesuffix('.jsonl')}-{number}.jsonl")
        return Plan(plan.targets, range(len(plan.targets)), plan.writer)


def test_the_contract_finds_a_sink_that_has_rows_twice(folder, tmp_path):
    dataset = ImageTextPairDataset.from_webdataset(folder)
    with pytest.raises(AssertionError):
        TestLines().test_a_second_run_finds_what_is_finished(Doubles(str(tmp_path / "lines")), dataset)


def test_a_sink_of_ones_own_gets_what_steps_make(folder, tmp_path):
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(folder))
    sink, kept = LinesSink(str(tmp_path / "lines")), ["key", "image_embedding"]
    summary, _ = run(dataset.metadata, [], sink, kept=kept, id_col="key")
    assert (summary.rows, summary.failed) == (18, 1)
    lines = [line for path in Path(sink.place).glob("*.jsonl") for line in path.read_text().splitlines()[1:]]
    rows = [json.loads(line) for line in lines]
    assert len({row["key"] for row in rows}) == 18
    check_colours([r["key"] for r in rows], [r["image_embedding"] for r in rows], {"000010003"})
