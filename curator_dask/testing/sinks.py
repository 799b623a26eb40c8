"""`SinkTests`: what every sink must do."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import pytest

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import CuratorError
from curator_dask.runs.lineage import trace
from curator_dask.runs.run import run
from curator_dask.runs.sink import Plan, Sink, Writer
from curator_dask.runs.summary import SaveSummary


class SinkTests:
    """The contract of `curator_dask.runs.sink.Sink`; a subclass gives the fixtures `sink` and `dataset`."""

    @pytest.fixture
    def sink(self, tmp_path: Path) -> Sink:
        """The sink, with nothing in it."""
        raise pytest.UsageError(f"{type(self).__name__} must have a fixture 'sink'")

    @pytest.fixture
    def dataset(self) -> ImageTextPairDataset:
        """A dataset of two shards at least."""
        raise pytest.UsageError(f"{type(self).__name__} must have a fixture 'dataset'")

    def read(self, sink: Sink) -> list[str] | None:
        """The keys that are in the sink, in any order; None where it keeps nothing."""
        raise pytest.UsageError(f"{type(self).__name__} must have a method 'read'")

    @pytest.fixture(autouse=True)
    def _here(self) -> Any:
        with dask.config.set(scheduler="sync"):
            yield

    def _run(self, sink: Sink, dataset: ImageTextPairDataset) -> SaveSummary:
        kept = list(dataset.metadata.columns)
        summary, _ = run(dataset.metadata, [], sink, kept=kept, id_col=dataset.id_col)
        return summary

    def _keys(self, dataset: ImageTextPairDataset) -> list[str]:
        return sorted(map(str, dataset.compute()[dataset.id_col]))

    def test_it_is_a_sink(self, sink: Sink) -> None:
        """It has all that a sink has."""
        assert isinstance(sink, Sink)

    def test_what_is_unwritten(self, sink: Sink, dataset: ImageTextPairDataset) -> None:
        """All partitions at first; later no more than there are, so that models are loaded where there is work."""
        lineage = trace(dataset.metadata)
        with sink.open():
            assert sink.unwritten(lineage) == dataset.npartitions
        self._run(sink, dataset)
        assert 0 <= sink.unwritten(lineage) <= dataset.npartitions

    def test_every_row_once(self, sink: Sink, dataset: ImageTextPairDataset) -> None:
        """All rows are put there, none twice, and the counts say so."""
        summary = self._run(sink, dataset)
        keys = self._keys(dataset)
        assert summary.rows == len(keys) and summary.written == dataset.npartitions
        found = self.read(sink)
        assert found is None or sorted(found) == keys

    def test_a_second_run_finds_what_is_finished(self, sink: Sink, dataset: ImageTextPairDataset) -> None:
        """What the sink keeps is not done again, and there are no rows twice."""
        self._run(sink, dataset)
        before = self.read(sink)
        again = self._run(sink, dataset)
        if before is None:
            assert again.written == dataset.npartitions
            return
        assert (again.written, again.skipped) == (0, dataset.npartitions)
        assert sorted(self.read(sink) or ()) == sorted(before)

    def test_a_run_goes_on_where_one_stopped(self, sink: Sink, dataset: ImageTextPairDataset) -> None:
        """With one partition done, only the others are."""
        plan, function = self._planned(sink, dataset)
        plan.writer.write(function(0), plan.targets[0])
        kept = self.read(sink) is not None
        again = self._run(sink, dataset)
        assert again.written == dataset.npartitions - kept
        found = self.read(sink)
        assert found is None or sorted(found) == self._keys(dataset)

    def test_a_task_that_runs_again_knows_what_it_has_done(
        self, sink: Sink, dataset: ImageTextPairDataset
    ) -> None:
        """`known` gives what `write` gave; of what is not done nothing."""
        plan, function = self._planned(sink, dataset)
        assert plan.writer.known(plan.targets[0]) is None
        said = plan.writer.write(function(0), plan.targets[0])
        known = plan.writer.known(plan.targets[0])
        assert known is None or json.loads(known["target"]) == json.loads(said["target"])
        assert plan.writer.known(plan.targets[1]) is None

    def test_its_writer_travels(self, sink: Sink, dataset: ImageTextPairDataset) -> None:
        """It is a small thing that can be pickled, and can be told to give rows up."""
        plan, _ = self._planned(sink, dataset)
        packed = cloudpickle.dumps(plan.writer)
        assert len(packed) < 1_000_000 and isinstance(pickle.loads(packed), Writer)
        assert isinstance(plan.writer.give_up("gave up: a test"), Writer)

    def test_what_was_given_up_is_done_again(self, sink: Sink, dataset: ImageTextPairDataset) -> None:
        """A partition whose rows were given up is not finished."""
        plan, function = self._planned(sink, dataset)
        plan.writer.give_up("gave up: a test").write(function(0), plan.targets[0])
        assert self._run(sink, dataset).written == dataset.npartitions

    def test_one_run_at_a_time(self, sink: Sink, dataset: ImageTextPairDataset) -> None:
        """While a run has it open no other gets in, if it keeps anything."""
        if self.read(sink) is None:
            pytest.skip("this sink keeps nothing")
        with sink.open(), pytest.raises(CuratorError), sink.open():
            pass

    def _planned(self, sink: Sink, dataset: ImageTextPairDataset) -> tuple[Plan, Any]:
        from curator_dask.runs.lineage import trace
        from curator_dask.runs.shardwise import shard_function
        from curator_dask.runs.sink import Job

        lineage = trace(dataset.metadata)
        columns = tuple(dataset.metadata.columns)
        job = Job(dataset.metadata, lineage, lineage.steps, {}, columns, dataset.id_col)
        function = shard_function(lineage)
        assert function is not None and lineage.ranges is not None
        ranges = lineage.ranges
        with sink.open():
            plan = sink.plan(job)
        return plan, lambda number: function(ranges[number])
