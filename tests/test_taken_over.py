"""A rerun with one more head, statistic or model makes that alone: nothing is fetched, decoded or scored again."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from colours import ColourReader, read_output, write_dataset

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.image.classifiers import HeadClassifier
from curator_dask.image.statistics import ImageStatistics
from curator_dask.models.encoders import Encoder
from curator_dask.runs import passes

pytestmark = pytest.mark.usefixtures("in_this_process")

BAD = {"000000001": b"", "000010003": b"GIF"}
NAMES = ["width", "orientation", "phash", "brightness"]


class Counted(HeadClassifier):
    """A linear head that says when it is asked."""

    def load_model(self, device):
        head = super().load_model(device)
        return lambda vectors: (self.count(len(vectors)), head(vectors))[1]

    def count(self, vectors):
        CALLS.append((self.pred_column, vectors))


CALLS: list[tuple[str, int]] = []


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Images that are fetched, forwards, and vectors that heads are asked about; emptied by the one who looks."""
    CALLS.clear()
    for place, name, what in ((passes, "read_images", "images"), (Encoder, "__call__", "forward")):
        monkeypatch.setattr(place, name, counting(getattr(place, name), what))


def counting(function, what):
    """The function, which counts the ids, or the pixels behind its object, that it is called with."""

    def counted(*given, **options):
        rows = given[0] if what == "images" else given[1]
        CALLS.append((what, len(rows)))
        return function(*given, **options)

    return counted


def calls():
    found = {name: sum(each for what, each in CALLS if what == name) for name, _ in CALLS}
    CALLS.clear()
    return found


def write_head(folder, name, scale=1.0):
    path = folder / f"{name}.pth"
    torch.save({"weight": scale * torch.tensor([[1.0, 2.0, 3.0]]), "bias": torch.zeros(1)}, path)
    return path


@pytest.fixture
def made(tmp_path):
    """Makes the dataset, each time from scratch, with some heads and statistics."""
    write_dataset(tmp_path / "data", 2, 8, bad=BAD)
    for number, name in enumerate("abc"):
        write_head(tmp_path, name, number + 1.0)

    def make(heads, statistics=NAMES, *, first=True):
        dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
        if first:
            dataset = ImageStatistics(statistics, prefix="image_")(dataset)
        dataset = ColourReader()(dataset)
        for name in heads:
            dataset = Counted(tmp_path / f"{name}.pth", name)(dataset)
        return dataset

    return make


def check_same(folder, before):
    after = read_output(folder)
    for name in before.column_names:
        assert after[name].equals(before[name]), name
    return after


def test_one_more_head(made, tmp_path):
    out = tmp_path / "out"
    made("ab").save_metadata(out)
    assert calls() == {"images": 16, "forward": 14, "a": 14, "b": 14}
    before = read_output(out)
    summary = made("abc").save_metadata(out)
    assert calls() == {"c": 14}
    assert (summary.written, summary.rows, summary.failed, summary.complete) == (2, 16, 2, True)
    after = check_same(out, before)
    fresh = tmp_path / "fresh"
    made("abc").save_metadata(fresh)
    assert after.equals(read_output(fresh))
    calls()
    assert made("abc").save_metadata(out).skipped == 2
    # A head is taken over from the files of the run before, whichever other steps are left out or new.
    made("cb", first=False).save_metadata(out, overwrite=True)
    assert calls() == {}


def test_another_statistic(made, tmp_path):
    out = tmp_path / "out"
    made("a").save_metadata(out)
    before, _ = read_output(out), calls()
    made("a", [*NAMES, "entropy"]).save_metadata(out)
    assert calls() == {"images": 16}
    assert check_same(out, before)["image_entropy"].null_count == 2


def test_another_model(made, tmp_path):
    out = tmp_path / "out"
    made("ab").save_metadata(out)
    before, _ = read_output(out), calls()
    # Of its own, and then of all together.
    plain = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    ColourReader(image_embedding_column="second")(plain).save_metadata(out)
    assert calls() == {"images": 16, "forward": 14}
    check_same(out, before)
    both = Counted(tmp_path / "c.pth", "c", "second")(
        ColourReader(image_embedding_column="second")(made("ab"))
    )
    both.save_metadata(out)
    assert calls() == {"c": 14}
    check_same(out, before)


def test_another_head_of_the_same_name(made, tmp_path):
    out = tmp_path / "out"
    made("ab").save_metadata(out)
    before, _ = read_output(out), calls()
    write_head(tmp_path, "a", 8.0)
    made("ab").save_metadata(out, overwrite=True)
    assert calls() == {"a": 14}
    after = read_output(out)
    assert after["b"].equals(before["b"])
    assert after["a"].equals(pc.multiply(before["a"], pa.scalar(8, pa.float32())))


def test_what_a_user_has_changed_is_not_taken_for_what_was_made(made, tmp_path):
    out = tmp_path / "out"

    def doubled(heads):
        dataset = made(heads)
        dataset.metadata["image_brightness"] = dataset.metadata["image_brightness"] * 2
        dataset.metadata["a"] = dataset.metadata["a"] * 2
        return dataset

    doubled("a").save_metadata(out)
    before, _ = read_output(out), calls()
    doubled("ab").save_metadata(out)
    assert calls() == {"images": 16, "a": 14, "b": 14}
    check_same(out, before)


def test_a_shard_that_changed_is_looked_at_again(made, tmp_path):
    out = tmp_path / "out"
    made("a").save_metadata(out)
    calls()
    write_dataset(tmp_path / "data", 1, 8, bad=BAD)
    summary = made("ab").save_metadata(out)
    assert calls() == {"images": 8, "forward": 7, "a": 7, "b": 14}
    assert summary.written == 2


def test_rows_that_were_left_out_before_are_made(made, tmp_path):
    out = tmp_path / "out"
    made("a").filter("key like '%2'").save_metadata(out)
    calls()
    made("a").filter("key like '%2' or key like '%3'").save_metadata(out, overwrite=True)
    assert calls() == {"images": 16, "forward": 14, "a": 14}
    assert read_output(out)["a"].null_count == 1
