"""Failed rows tried again, and only these."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from colours import (
    ColourReader,
    check_colours,
    colour_of,
    image_of,
    members_of,
    read_output,
    write_dataset,
    write_tar,
)
from PIL import Image
from test_heads import red_head

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import OutputError, WeightsError
from curator_dask.frames.columns import list_to_matrix
from curator_dask.frames.parquet import read_record
from curator_dask.image.classifiers import HeadClassifier, ImageClassifier, score_output
from curator_dask.image.embedders import TimmImageEmbedder
from curator_dask.image.statistics import ImageStatistics
from curator_dask.outputs.parquet import ParquetSink
from curator_dask.outputs.settings_there import find_settings
from curator_dask.outputs.writing import Output
from curator_dask.runs.lineage import replace_functions, trace
from curator_dask.runs.shardwise import shard_function
from curator_dask.runs.sink import Job
from curator_dask.runs.step import ColumnStep

SHARDS, SAMPLES = 3, 8
LARGE = {"000000003", "000020000", "000020007"}  # above a limit of pixels that may be raised
BROKEN = {"000000005": b"<!DOCTYPE html>"}
pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def folder(tmp_path):
    import io

    bad = dict(BROKEN)
    for key in LARGE:
        file = io.BytesIO()
        Image.new("RGB", (200, 100), colour_of(key)).save(file, "PNG")
        bad[key] = file.getvalue()
    write_dataset(tmp_path / "data", SHARDS, SAMPLES, bad=bad)
    return tmp_path / "data"


class CountingReader(ColourReader):
    """Writes down how many images it was given."""

    def __init__(self, log, **settings):
        super().__init__(**settings)
        self.log = str(log)

    def load_embedding_model(self, device):
        model, log = super().load_embedding_model(device), Path(self.log)

        def count(images):
            with log.open("a") as file:
                file.write(f"{len(images)}\n")
            return model(images)

        return count


def failed_keys(table):
    return table["key"].filter(table["image_error"].is_valid()).to_pylist()


def embed(folder, out, embedder, **settings):
    return embedder(ImageTextPairDataset.from_webdataset(folder)).save_metadata(out, **settings)


@pytest.mark.parametrize("drop_failed", [False, True])
def test_only_what_failed_is_tried(folder, tmp_path, drop_failed, said):
    out, log = tmp_path / "out", tmp_path / "log"
    embed(folder, out, CountingReader(log, max_pixels=10_000), drop_failed=drop_failed)
    before = read_output(out)
    untouched = (out / "00001.parquet").stat().st_mtime_ns
    log.write_text("")
    summary = CountingReader(log, max_pixels=100_000).retry(out)
    assert summary.failed_shards == {}
    assert (summary.rows, summary.failed, summary.written) == (4, 1, 2)
    assert sum(map(int, log.read_text().split())) - 2 <= len(LARGE)  # two to see what the model gives
    assert "4 failed rows tried again, 3 have a vector now" in said.text
    table = read_output(out)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad=BROKEN)
    assert (out / "00001.parquet").stat().st_mtime_ns == untouched
    # What the first run counted is no longer said of the files that were changed.
    reports = [read_record(str(path)).report for path in sorted(out.glob("*.parquet"))]
    told = [report and report["failed"] for report in reports]
    assert told == [None, 0, None]
    if drop_failed:
        assert len(before) == SHARDS * SAMPLES - 4
        assert len(table) == SHARDS * SAMPLES - 1
        assert pq.read_table(out.with_suffix(".errors") / "00000.parquet")["key"].to_pylist() == list(BROKEN)
        assert not (out.with_suffix(".errors") / "00002.parquet").exists()
    else:
        assert table["key"].to_pylist() == before["key"].to_pylist(), "rows changed their order"
        assert table.schema.equals(before.schema)
        assert failed_keys(table) == list(BROKEN)
    again = embed(folder, out, CountingReader(log, max_pixels=10_000), drop_failed=drop_failed)
    assert again.skipped == SHARDS, "the run that made the files does not know them any more"
    third = CountingReader(log, max_pixels=100_000).retry(out)
    assert (third.rows, third.failed) == (1, 1)


def test_nothing_to_try(tmp_path, said):
    write_dataset(tmp_path / "data")
    embed(tmp_path / "data", tmp_path / "out", ColourReader())
    summary = ColourReader().retry(tmp_path / "out")
    assert (summary.rows, summary.written) == (0, 0)
    assert "nothing to do" in said.text


@pytest.mark.parametrize("drop_failed", [False, True])
def test_rows_without_a_sample_are_not_tried_while_their_tars_are_as_they_were(tmp_path, drop_failed, said):
    write_dataset(tmp_path / "data")
    beside = tmp_path / "data/00001.parquet"
    rows = pq.read_table(beside)
    lacking = pa.table({**rows.slice(0, 1).to_pydict(), "key": ["none"]}, rows.schema)  # it was never fetched
    pq.write_table(pa.concat_tables([rows, lacking]), beside)
    out = tmp_path / "out"
    embed(tmp_path / "data", out, ColourReader(), drop_failed=drop_failed)

    def nobody():
        raise AssertionError("workers are not needed")

    summary = ColourReader().retry(out, workers=nobody)
    assert (summary.rows, summary.without_sample, summary.complete) == (0, 1, True)
    assert "nothing to do, 1 failed row has no sample in the tar, and no tar has changed since" in said.text
    os.utime(tmp_path / "data/00001.tar")
    with pytest.raises(AssertionError, match="not needed"):
        ColourReader().retry(out, workers=nobody)


@pytest.mark.parametrize("drop_failed", [False, True])
def test_a_file_in_which_nothing_was_mended_stays_as_it_is(folder, tmp_path, drop_failed):
    """What was made of it, a filter's or an export's, stays finished."""
    out = tmp_path / "out"
    embed(folder, out, ColourReader(), drop_failed=drop_failed)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("out*/*.parquet")}
    summary = ColourReader().retry(out)
    assert before and summary.failed == summary.rows > 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("out*/*.parquet")} == before


def test_two_embeddings_keep_apart(folder, tmp_path):
    dataset = ImageTextPairDataset.from_webdataset(folder)
    second = ColourReader(image_embedding_column="second", max_pixels=5_000)
    second(ColourReader()(dataset)).save_metadata(tmp_path / "out")
    ColourReader(image_embedding_column="second").retry(tmp_path / "out")
    table = read_output(tmp_path / "out")
    for column in ("image_embedding", "second"):
        check_colours(table["key"].to_pylist(), table[column].to_pylist(), bad=BROKEN)
    assert failed_keys(table) == list(BROKEN)


def test_what_is_refused(folder, tmp_path):
    embed(folder, tmp_path / "out", ColourReader(max_pixels=10_000))
    with pytest.raises(OutputError, match=r"column 'image_embedding' was made with .*; this run has"):
        ColourReader(normalize_embeddings=True).retry(tmp_path / "out")
    with pytest.raises(OutputError, match="no file there has a column 'other'"):
        ColourReader(image_embedding_column="other").retry(tmp_path / "out")
    for place in (folder, tmp_path / "nowhere"):
        with pytest.raises(OutputError, match=f"{place}: no file there"):
            ColourReader().retry(place)
    assert not (tmp_path / "nowhere").exists()


def test_a_shard_that_has_changed_is_for_embed(folder, tmp_path):
    embed(folder, tmp_path / "out", ColourReader(max_pixels=10_000))
    members = [member for sample in range(SAMPLES) for member in members_of(f"00002{sample:04d}")]
    write_tar(folder / "00002.tar", members)
    summary = ColourReader().retry(tmp_path / "out")
    assert list(summary.failed_shards) == ["00002"]
    assert "run embed again" in summary.failed_shards["00002"]
    assert (summary.rows, summary.failed) == (2, 1)


def test_settings_make_the_embedder_again(folder, tmp_path):
    embedder = TimmImageEmbedder(
        "test_vit", pretrained=False, max_pixels=10_000, model_kwargs={"img_size": 64}, batch_size=4
    )
    stored = TimmImageEmbedder(**json.loads(json.dumps(embedder.settings())))
    assert stored.encoder_spec() == embedder.encoder_spec()
    assert vars(stored) == vars(embedder)
    embed(folder, tmp_path / "out", ColourReader())
    assert find_settings(str(tmp_path / "out")) == {}
    dataset = TimmImageEmbedder("test_vit", pretrained=False, image_embedding_column="of_some")(
        ImageTextPairDataset.from_webdataset(folder)
    )
    dataset.with_metadata(dataset.metadata.partitions[2:]).save_metadata(tmp_path / "out")
    assert list(find_settings(str(tmp_path / "out"))) == ["of_some"]
    assert read_record(str(tmp_path / "out" / "00000.parquet")).id_col == "key"
    assert image_of("000000001")  # the dataset's own images are small


def test_a_retry_that_died_half_way_doubles_no_row(folder, tmp_path):
    """The file of good rows is written first: what was dropped may then stand in both."""
    out = tmp_path / "out"
    embed(folder, out, ColourReader(max_pixels=10_000), drop_failed=True)
    dropped = {path: path.read_bytes() for path in out.with_suffix(".errors").iterdir()}
    ColourReader().retry(out)
    for path, content in dropped.items():
        path.write_bytes(content)
    ColourReader().retry(out)
    table = read_output(out)
    assert sorted(table["key"].to_pylist()) == sorted(set(table["key"].to_pylist()))
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())
    assert len(table) == SHARDS * SAMPLES - len(BROKEN)
    assert pq.read_table(out.with_suffix(".errors") / "00000.parquet")["key"].to_pylist() == list(BROKEN)


def test_failed_rows_whose_file_is_gone_are_said(folder, tmp_path, said):
    """Not those that a retry has brought back."""
    out, errors = tmp_path / "out", tmp_path / "out.errors"
    reader = ColourReader(max_pixels=10_000)
    embed(folder, out, reader, drop_failed=True)
    ColourReader(max_pixels=100_000).retry(out)
    assert embed(folder, out, reader, drop_failed=True).skipped == SHARDS
    assert "in no file any more" not in said.text
    (out / "00002.parquet").unlink()
    embed(folder, out, reader, drop_failed=True)
    for path in errors.iterdir():
        path.unlink()
    assert embed(folder, out, reader, drop_failed=True).skipped == SHARDS
    assert f"{out}: in no file any more: 2 rows whose image failed. Those of 00002.parquet" in said.text
    (out / "00002.parquet").unlink()
    embed(folder, out, reader, drop_failed=True)
    assert len(pq.read_table(errors / "00002.parquet")) == 2


def test_failed_rows_of_an_earlier_version_are_found(folder, tmp_path):
    """They were below the output."""
    out = tmp_path / "out"
    embed(folder, out, ColourReader(max_pixels=10_000), drop_failed=True)
    out.with_suffix(".errors").rename(out / "_errors")
    assert embed(folder, out, ColourReader(max_pixels=10_000), drop_failed=True).skipped == SHARDS
    summary = ColourReader(max_pixels=100_000).retry(out)
    assert (summary.rows, summary.failed, summary.failed_shards) == (4, 1, {})
    assert list((out / "_errors").iterdir()) == []
    assert pq.read_table(out.with_suffix(".errors") / "00000.parquet")["key"].to_pylist() == list(BROKEN)
    table = read_output(out)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())
    assert len(table) == SHARDS * SAMPLES - 1


def test_a_folder_of_that_name_which_is_anothers_stays(folder, tmp_path):
    other = tmp_path / "out.errors" / "00001.parquet"
    other.parent.mkdir()
    pq.write_table(pa.table({"mine": [1]}), other)
    embed(folder, tmp_path / "out", ColourReader())
    assert pq.read_table(other).to_pydict() == {"mine": [1]}


def test_files_without_a_row_are_no_obstacle(tmp_path):
    bad = {f"00001{sample:04d}": b"" for sample in range(SAMPLES)}
    write_dataset(tmp_path / "data", SHARDS, SAMPLES, bad=bad)
    embed(tmp_path / "data", tmp_path / "out", ColourReader(), drop_failed=True)
    assert pq.read_metadata(tmp_path / "out" / "00001.parquet").num_rows == 0
    summary = ColourReader().retry(tmp_path / "out")
    assert (summary.rows, summary.failed, summary.failed_shards) == (SAMPLES, SAMPLES, {})


@pytest.mark.parametrize("lacking", ["key", "__url__", "image_error"])
def test_an_output_without_the_columns_that_a_retry_needs(folder, tmp_path, lacking):
    columns = {"key", "__url__", "image_error", "image_embedding"} - {lacking}
    embed(folder, tmp_path / "out", ColourReader(max_pixels=10_000), columns=sorted(columns))
    with pytest.raises(OutputError, match=f"has no columns .*{lacking}"):
        ColourReader().retry(tmp_path / "out")


def test_one_of_two_embeddings_of_dropped_rows(folder, tmp_path):
    out = tmp_path / "out"
    dataset = ImageTextPairDataset.from_webdataset(folder)
    first, second = (ColourReader(image_embedding_column=name, max_pixels=10_000) for name in "ab")
    second(first(dataset)).save_metadata(out, drop_failed=True)
    before = len(read_output(out))
    summary = ColourReader(image_embedding_column="a").retry(out)
    assert (summary.rows, summary.failed) == (4, 1)
    assert len(read_output(out)) == before, "rows that lack the other embedding came back"
    summary = ColourReader(image_embedding_column="b").retry(out)
    assert (summary.rows, summary.failed) == (4, 1)
    table = read_output(out)
    assert len(table) == SHARDS * SAMPLES - 1
    for name in "ab":
        check_colours(table["key"].to_pylist(), table[name].to_pylist())


def test_a_shuffled_output_of_a_shard_that_has_changed(folder, tmp_path):
    dataset = ColourReader(max_pixels=10_000)(ImageTextPairDataset.from_webdataset(folder))
    dataset.with_metadata(dataset.metadata.shuffle("key", npartitions=1)).save_metadata(tmp_path / "out")
    assert ColourReader(max_pixels=10_001).retry(tmp_path / "out").failed_shards == {}
    members = [member for sample in range(SAMPLES) for member in members_of(f"00002{sample:04d}")]
    write_tar(folder / "00002.tar", members)
    summary = ColourReader().retry(tmp_path / "out")
    assert "run embed again" in summary.failed_shards["part-00000"]


@pytest.mark.parametrize("url", ["nostore://bucket/out", "memory://nothing"])
def test_stores_that_cannot_be_opened(url):
    with pytest.raises(OutputError, match=url.partition(":")[0]):
        ColourReader().retry(url)
    with pytest.raises(OutputError, match=url.partition(":")[0]):
        find_settings(url)


GIVEN_UP = "gave up: 4 workers died"


def test_shards_that_were_given_up_are_finished_by_a_retry(folder, tmp_path):
    out = tmp_path / "out"
    embed(folder, out, ColourReader())
    (out / "00001.parquet").unlink()
    # As a run does it with a shard that kills its workers.
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(folder))
    output = Output(str(out), None, in_place=False, overwrite=False, drop_failed=False)
    lineage = trace(dataset.metadata)
    (step,) = lineage.steps
    job = Job(
        dataset.metadata, lineage, lineage.steps, step.describe(), tuple(dataset.metadata.columns), "key"
    )
    plan = ParquetSink(output).plan(job)
    done = shard_function(trace(replace_functions(dataset.metadata, lambda each: each.give_up(GIVEN_UP))))
    plan.writer.give_up(GIVEN_UP).write(done(lineage.ranges[1]), plan.targets[1])
    marked = pq.read_table(out / "00001.parquet")
    assert marked["image_error"].to_pylist() == [GIVEN_UP] * SAMPLES

    summary = ColourReader().retry(out)
    assert (summary.rows, summary.failed) == (SAMPLES + len(BROKEN), len(BROKEN))
    table = read_output(out)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad=BROKEN)
    assert embed(folder, out, ColourReader()).skipped == SHARDS, "not known as finished"


class Own(ImageClassifier):
    def __init__(self):
        super().__init__("own", pred_column="own")

    def load_model(self, device):
        return lambda vectors: vectors[:, 0]


def doubled(frame):
    return frame.assign(double=frame["width"] * 2)


class Redness(ColumnStep):
    needs = frozenset({"vectors"})
    columns = {"redness": pa.float32()}  # noqa: RUF012

    def compute(self, rows):
        matrix, valid = list_to_matrix(rows.column("image_embedding"), 3)
        return {"redness": pa.array(matrix[:, 0], mask=~valid)}


@pytest.mark.parametrize("scale", ["exact", "fast"])
def test_what_was_made_of_the_images_is_made_of_the_mended_too(folder, tmp_path, scale):
    """Statistics and scores: of the rows that were good they stay bit for bit, the others get theirs."""
    out, heads = tmp_path / "out", [HeadClassifier(red_head(tmp_path, 2), "blue"), Own()]

    def run(to, limit, classifiers):
        embedder = ColourReader(max_pixels=limit, classifiers=classifiers, decode_scale=scale)
        measure = ImageStatistics(["width", "grey"], prefix="image_", max_pixels=limit)
        measure(embedder(ImageTextPairDataset.from_webdataset(folder))).save_metadata(to)

    run(out, 10_000, heads)
    run(tmp_path / "whole", 100_000, heads)
    before, whole = read_output(out), read_output(tmp_path / "whole")
    summary = ColourReader(max_pixels=100_000, decode_scale=scale).retry(out)
    assert (summary.rows, summary.failed) == (4, 1) and f"{out}, image_embedding: 4 failed" in str(summary)
    after = read_output(out)
    bad = before["image_embedding"].is_null()
    assert after.filter(pc.invert(bad)).equals(before.filter(pc.invert(bad)))
    for name in ("image_embedding", "blue", "image_width", "image_grey"):
        assert after[name].equals(whole[name]), name
    # A head of one's own is not made again by what a file says: it is said, and made by whoever has it.
    assert after["own"].null_count == len(LARGE) + len(BROKEN)
    assert {fact["examples"][0] for fact in summary.not_made.values()} == {"own"}
    assert score_output(out, heads).written == 2
    assert read_output(out).equals(whole) and read_output(out)["own"].null_count == len(BROKEN)
    for path in (out / "00000.parquet", out / "00002.parquet"):
        path.unlink()
    run(out, 10_000, heads)
    ColourReader(max_pixels=100_000, classifiers=[Own()], decode_scale=scale).retry(out)
    assert read_output(out).equals(whole)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (Path.unlink, "cannot be read here"),
        (lambda head: head.write_bytes(b"junk"), "is not what it was"),
        (lambda head: red_head(head.parent, 1), "is not what it was"),
    ],
)
def test_a_head_that_is_not_there_as_it_was_is_said(folder, tmp_path, said, spoil, why):
    """The vectors are made all the same; the scores that are there stay, and `score` makes the others."""
    head = red_head(tmp_path, 2)
    kept = head.read_bytes()
    embed(
        folder, tmp_path / "out", ColourReader(max_pixels=10_000, classifiers=[HeadClassifier(head, "blue")])
    )
    spoil(head)
    summary = ColourReader(max_pixels=100_000).retry(tmp_path / "out")
    (line,) = [each for each in said.messages if each.startswith("no blue of the rows that are tried again")]
    assert head.name in line and why in line
    assert read_output(tmp_path / "out")["blue"].null_count == len(LARGE) + len(BROKEN)
    head.write_bytes(kept)
    assert score_output(tmp_path / "out", [HeadClassifier(head, "blue")]).written == 2
    assert read_output(tmp_path / "out")["blue"].null_count == len(BROKEN)
    assert {name for fact in summary.not_made.values() for name in fact["examples"]} == {"blue"}
    assert read_output(tmp_path / "out")["image_embedding"].null_count == len(BROKEN)


class Lost(Own):
    def load_model(self, device):
        raise WeightsError("lost: its weights cannot be loaded")


def test_a_score_whose_model_cannot_be_loaded_does_not_stop_the_vectors(folder, tmp_path, said):
    embed(folder, tmp_path / "out", ColourReader(max_pixels=10_000, classifiers=[Own()]))
    summary = ColourReader(max_pixels=100_000, classifiers=[Lost()]).retry(tmp_path / "out")
    assert any("no own of the rows that are tried again: lost: its weights" in each for each in said.messages)
    assert (summary.rows, summary.failed) == (4, 1)
    assert read_output(tmp_path / "out")["image_embedding"].null_count == len(BROKEN)


WITH_MORE = {
    "a function": (
        lambda dataset: dataset.with_metadata(dataset.metadata.map_partitions(doubled)),
        "doubled",
    ),
    "a column": (
        lambda dataset: dataset.with_metadata(
            dataset.metadata.assign(good=dataset.metadata["image_error"].isna())
        ),
        "good = …",
    ),
    "a step": (lambda dataset: dataset.apply(Redness()), "redness"),
}


@pytest.mark.parametrize("name", WITH_MORE)
def test_what_was_made_of_vectors_is_not_left_with_holes(folder, tmp_path, name):
    """A mended row would have a vector, and not what was made of it: a retry is refused, and says what to do."""
    more, said = WITH_MORE[name]
    out, limited = tmp_path / "out", ColourReader(max_pixels=10_000)

    def run(embedder):
        dataset = more(embedder(ImageTextPairDataset.from_webdataset(folder)))
        return dataset.save_metadata(out, overwrite=True)

    assert run(limited).failed == len(LARGE) + len(BROKEN)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(OutputError, match=rf"{said} .*run the script"):
        ColourReader(max_pixels=100_000).retry(out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    for path in before:
        if pq.read_table(path)["image_error"].null_count < SAMPLES:
            path.unlink()
    assert run(ColourReader(max_pixels=100_000)).failed == len(BROKEN)
    table = read_output(out)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad=BROKEN)
    if name == "a step":
        for key, red in zip(table["key"].to_pylist(), table["redness"].to_pylist(), strict=True):
            assert red is None if key in BROKEN else red == pytest.approx(colour_of(key)[0], abs=0.51)


def test_columns_that_were_there_before_are_no_hindrance(folder, tmp_path):
    dataset = ImageTextPairDataset.from_webdataset(folder)
    dataset = dataset.with_metadata(dataset.metadata.map_partitions(doubled))
    out = tmp_path / "out"
    ColourReader(max_pixels=10_000)(dataset).save_metadata(out)
    assert ColourReader(max_pixels=100_000).retry(out).failed == len(BROKEN)
    assert read_output(out)["double"].null_count == 0
