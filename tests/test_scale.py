"""Many shards: what the benchmark of them gives, and that handing them out in pieces loses and swaps nothing."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time

import pyarrow.parquet as pq
import pytest
from colours import ColourReader, check_colours, read_output, write_dataset

from benchmarks import scale
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.runs import execute as running
from curator_dask.runs import groups
from curator_dask.threads import in_threads

SHARDS, SAMPLES = 11, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale") / "data"
    write_dataset(folder, SHARDS, SAMPLES)
    (folder / "00006.parquet").write_bytes(b"no Parquet")
    return folder


@pytest.fixture(params=["cluster", "this process"])
def where(request):
    """The client of a cluster, or None."""
    return request.getfixturevalue("client") if request.param == "cluster" else None


def pieces_sent(client):
    """What names the graphs that the scheduler was given."""
    events = [event for _, event in client.get_events("scheduler")]
    return {event["stimulus_id"] for event in events if event.get("action") == "update-graph"}


def test_shards_handed_out_in_pieces(folder, where, tmp_path, monkeypatch):
    """A shard that fails in the midst, a filter, and shards that are finished: all as in one go."""
    monkeypatch.setattr(running, "AHEAD", 3)
    monkeypatch.setattr(groups, "AHEAD", 3)
    before = set() if where is None else pieces_sent(where)

    def embedded(least):
        dataset = ImageTextPairDataset.from_webdataset(folder)
        rows = dataset.metadata[dataset.metadata["key"] >= least]
        return ColourReader()(dataset.with_metadata(rows))

    summary = embedded("000000002").save_metadata(tmp_path / "out")
    assert (summary.written, list(summary.failed_shards)) == (SHARDS - 1, ["00006"])
    table = read_output(tmp_path / "out")
    keys = table["key"].to_pylist()
    expected = {f"{shard:05d}{sample:04d}" for shard in range(SHARDS) for sample in range(SAMPLES)}
    expected -= {"000000000", "000000001", *(f"00006{sample:04d}" for sample in range(SAMPLES))}
    assert len(keys) == len(expected) and set(keys) == expected
    check_colours(keys, table["image_embedding"].to_pylist())
    for path in (tmp_path / "out").glob("*.parquet"):
        assert {key[:5] for key in pq.read_table(path)["key"].to_pylist()} == {path.stem}
    if where is not None:
        # 11 shards in pieces of 3 at most, single ones to the end, and one graph a worker to load the model.
        assert 4 + 2 <= len(pieces_sent(where) - before) <= SHARDS + 2

    for number in (1, 4, 5, 9):
        (tmp_path / "out" / f"{number:05d}.parquet").unlink()
    again = embedded("000000002").save_metadata(tmp_path / "out")
    assert (again.written, again.skipped, list(again.failed_shards)) == (4, SHARDS - 5, ["00006"])
    table = read_output(tmp_path / "out")
    assert sorted(table["key"].to_pylist()) == sorted(expected)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())


@pytest.mark.parametrize("waiting", [range(64), range(20, 64, 3), ()], ids=["all wait", "some", "none"])
def test_looks_at_files_that_wait_go_to_threads(waiting):
    """The order stays, whichever of them waits; only those that wait are worth threads."""
    looked_from = set()

    def look(number):
        looked_from.add(threading.get_ident())
        time.sleep(0.03 if number in waiting else 0)
        return number

    assert in_threads(look, range(64)) == list(range(64))
    assert not waiting or len(looked_from) > 2


def test_looks_at_files_that_fail():
    """No items, and an error of one."""
    assert in_threads(lambda number: number, []) == []
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda number: 1 / (5 - number), range(9))


@pytest.mark.slow
def test_scale(tmp_path, monkeypatch):
    """The benchmark's quick run: every figure comes from what was run, ratios from the same round."""
    in_new_process = scale._in_new_process
    monkeypatch.setattr(groups, "MOST_SHARDS", groups.MOST_SHARDS)  # which a case changes for its process

    def here(kind, folder, workers):
        """In this process, whose workers start at once, what needs no new one once the first has shown it works."""
        if folder.name in ("shards-1", "no-op-30"):
            return in_new_process(kind, folder, workers)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            scale.in_process(kind, str(folder), workers)
        return json.loads(said.getvalue().splitlines()[-1])

    monkeypatch.setattr(scale, "_in_new_process", here)
    path = tmp_path / "scale.json"
    scale.main(["--quick", "--out", str(path)])
    result = json.loads(path.read_text())
    cases = result["cases"]
    assert list(cases) == [
        "shards, 1 shards, 1w",
        "shards, 3 shards, 1w",
        "fixed, 2 shards, 1w",
        "fixed, 6 shards, 1w",
        "alone, 6 shards, 1w",
        "no-op, 30 shards, 1w",
        "start, 30 shards, 1w",
    ]
    assert [case["images"]["median"] for case in list(cases.values())[:5]] == [16, 48, 24, 24, 24]
    tiny = cases["no-op, 30 shards, 1w"]
    assert tiny["shards"]["runs"] == [30] and tiny["tars_opened"]["runs"] == [0]
    order = [tiny[name]["median"] for name in ("build", "first_task", "seconds")]
    assert order == sorted(order) and order[0] > 0
    assert tiny["client_peak_mib"]["median"] >= tiny["client_before_mib"]["median"] > 50
    started = cases["start, 30 shards, 1w"]
    assert started["first_task"]["median"] > started["build"]["median"] > 0
    assert started["client_cpu"]["median"] > 0 and "seconds" not in started
    ratios = result["ratios"]
    peaks = [cases[f"shards, {count} shards, 1w"]["peak_rss_mib"]["median"] for count in (3, 1)]
    found = ratios["peak memory of 3 shards ÷ that of 1, 1w"]["median"]
    assert found == pytest.approx(peaks[0] / peaks[1], rel=0.01)
    for figure, word in (("seconds", "time"), ("cpu_seconds", "CPU time")):
        first = cases["fixed, 2 shards, 1w"][figure]["median"]
        for kind, what, model in (
            ("fixed", "a shard", "null model"),
            ("alone", "a shard that is a task of its own", "EfficientNet-Lite0"),
        ):
            last = cases[f"{kind}, 6 shards, 1w"][figure]["median"]
            cost = ratios[f"{word} of {what} besides its images, ms"]["median"]
            assert cost == pytest.approx(1000 * (last - first) / 4, abs=1)
            share = ratios[f"share of it in a shard of 1,000 images, {model}, {word}, %"]["median"]
            cores = 1 if figure == "seconds" else scale.cores()
            whole = first / 24 if kind == "fixed" else cores / scale.LITE0_RATE
            assert share == pytest.approx(cost / 10 / (1000 * whole), rel=0.02, abs=0.01)
    assert len(result["table"]) == 6 and all(
        any(line.startswith(kind) for line in result["notes"]) for kind in ("no-op", "start")
    )
