"""Pipelines of stages: the same rows and vectors as through the dataset API, and what a user's stages may do."""

from __future__ import annotations

import io
import json
import re
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colour_stages import (
    Brightness,
    ColourStage,
    Diary,
    FailsOn,
    KeepRed,
    Shout,
    stages_of,
)
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
from dask.base import tokenize
from PIL import Image

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ClusterError, ConfigError, DatasetError, ImageError, OutputError
from curator_dask.frames.parquet import read_record
from curator_dask.pipeline import Pipeline
from curator_dask.stages import ProcessingStage, Resources
from curator_dask.stages.fused import RunStages
from curator_dask.stages.image import (
    FilePartitioningStage,
    ImageEmbeddingStage,
    ImageParquetWriterStage,
    ImageReaderEmbeddingStage,
    ImageReaderStage,
)
from curator_dask.stages.live import CHAINS, ChainSpec, end_run
from curator_dask.tasks import FileGroupTask, ImageBatch, ImageObject

pytestmark = pytest.mark.usefixtures("in_this_process")

BAD = "000010003"


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "data", bad={BAD: b"<html>"})
    return tmp_path / "data"


def run(*arguments, **options):
    return Pipeline("test", stages=stages_of(*arguments, **options)).run()


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


def rich_parquet(folder):
    """Parquet files with columns of many types beside the tars, their rows in another order than the tars'."""
    for number, path in enumerate(sorted(folder.glob("*.parquet"))):
        table = pq.read_table(path)
        rows = len(table)
        more = {
            "small": pa.array([None, *range(1, rows)], pa.int16()),
            "when": pa.array(range(rows), pa.timestamp("ns", tz="UTC")),
            "price": pa.array([f"{row}.25" for row in range(rows)]).cast(pa.decimal128(9, 2)),
            "tags": pa.array([["a", str(row)] for row in range(rows)]),
            "point": pa.array([{"x": row, "y": 0.5} for row in range(rows)]),
            "half": pa.array(np.arange(rows, dtype=np.float16)),
            "not_a_number": pa.array([float("nan")] * rows),
            "kind": pa.array(["x", "y"] * (rows // 2)).dictionary_encode(),
            "old_vector": pa.array(
                np.full((rows, 2), number, np.float32).tolist(), pa.list_(pa.float32(), 2)
            ),
        }
        for name, column in more.items():
            table = table.append_column(name, column)
        pq.write_table(table, path)


def test_the_output_is_that_of_the_dataset_api(folder, tmp_path):
    rich_parquet(folder)
    ColourReader()(ImageTextPairDataset.from_webdataset(folder)).save_metadata(tmp_path / "dataset")
    result = run(folder, tmp_path / "stages")
    assert (result.summary.rows, result.summary.failed, result.summary.written) == (30, 1, 3)
    for name in ("00000", "00001", "00002"):
        one, other = (pq.read_table(tmp_path / door / f"{name}.parquet") for door in ("dataset", "stages"))
        assert one.schema.equals(other.schema)
        for column in one.column_names:
            # By bits: NaN is not equal to itself.
            assert str(one[column].combine_chunks()) == str(other[column].combine_chunks()), column
    table = read_output(tmp_path / "stages")
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad={BAD})


def test_rows_from_the_tars(tmp_path):
    write_dataset(tmp_path / "data", parquet=False)
    ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path / "data")).save_metadata(
        tmp_path / "dataset"
    )
    run(tmp_path / "data", tmp_path / "stages")
    assert read_output(tmp_path / "dataset").equals(read_output(tmp_path / "stages"))


def test_the_image_of_several_is_picked_by_its_member(tmp_path):
    members = [("a.mask.png", 0), ("a.image.png", 1), ("b.mask.png", 3)]  # by the number of their colours
    write_tar(tmp_path / "data" / "0.tar", [(name, image_of(str(number))) for name, number in members])
    out = tmp_path / "out"
    for member, number in ((None, "0"), ("image.png", "1")):
        assert run(tmp_path / "data", out, image_member=member).summary.written == 1  # not taken for the same
        table = read_output(out)
        check_colours([number], table["image_embedding"].to_pylist()[:1])
    assert table["image_error"].to_pylist() == [None, "missing: the sample has no image.png"]


def test_objects_where_nothing_is_written(folder):
    result = run(folder)
    objects = result.objects
    assert len(objects) == 30 and result.summary.failed == 1 and len(result) == 9
    assert all(isinstance(batch, ImageBatch) and batch.validate() for batch in result)
    check_colours([each.image_id for each in objects], [each.embedding for each in objects], bad={BAD})
    for each in objects:
        assert each.image_data is None
        assert (
            each.metadata["key"] == each.image_id
            and each.metadata["caption"] == f"caption of {each.image_id}"
        )
        assert each.metadata["__url__"] == str(folder / f"{each.image_id[:5]}.tar")
        if each.image_id == BAD:
            assert each.embedding is None and each.error.startswith("not an image") and "<html>" in each.error
            assert each.image_path == f"{folder}/00001.tar/{BAD}.png"
        else:
            assert each.embedding.dtype == np.float32 and each.embedding.shape == (3,) and each.error is None
            assert each.image_path == f"{each.metadata['__url__']}/{each.image_id}.png"


class Look(ProcessingStage):
    """Looks at what stages of a user see; the test reads it from the metadata."""

    def inputs(self):
        return ["data"], ["image_data"]

    def process(self, task):
        for image in task.data:
            pixels = image.image_data
            if pixels is not None:
                image.metadata["seen"] = (pixels.shape, str(pixels.dtype), pixels[0, 0].tolist())
        return task


def test_what_a_stage_sees_of_an_image(folder):
    result = run(folder, None, Look(), embeds=False)
    for each in result.objects:
        if each.image_id == BAD:
            assert "seen" not in each.metadata
        else:
            shape = (20, 24 + len(each.image_id) % 5, 3)
            assert each.metadata["seen"] == (shape, "uint8", list(colour_of(each.image_id)))
        assert each.image_data is None, "pixels are not for the client, also where nobody removed them"


class Silent(ProcessingStage):
    """Does not say what it makes."""

    def process(self, task):
        return task


def test_a_second_run_writes_what_is_missing(folder, tmp_path):
    run(folder, tmp_path / "out")
    before = stamps(tmp_path / "out")
    summary = run(folder, tmp_path / "out").summary
    assert (summary.written, summary.skipped) == (0, 3) and stamps(tmp_path / "out") == before
    (tmp_path / "out" / "00001.parquet").unlink()
    summary = run(folder, tmp_path / "out", batch=7).summary
    assert (summary.written, summary.skipped) == (1, 2)
    assert run(folder, tmp_path / "out", Brightness()).summary.written == 3, "another stage makes other rows"
    with pytest.raises(OutputError, match=r"was made with output .*; this run has output .*Silent"):
        run(folder, tmp_path / "out", Silent())
    summary = run(folder, tmp_path / "out", Silent(), writer={"overwrite": True}).summary
    assert summary.written == 3, "what a stage does that says nothing of its outputs may be to the pixels"


def test_a_stage_whose_settings_change_makes_everything_anew(folder, tmp_path):
    for flag, written in (("a", 3), ("a", 0), ("b", 3)):
        stage = FailsOn("none", tmp_path / flag)
        summary = run(folder, tmp_path / "out", stage, writer={"overwrite": True}).summary
        assert summary.written == written


def test_fields_that_a_stage_adds(folder, tmp_path):
    run(folder, tmp_path / "out", Brightness())
    table = read_output(tmp_path / "out")
    names = ["key", "caption", "width", "__url__", "brightness", "image_embedding", "image_error"]
    assert table.column_names == names and table.schema.field("brightness").type == pa.float32()
    for row in table.to_pylist():
        if row["key"] == BAD:
            assert row["brightness"] is None
        else:
            assert row["brightness"] == pytest.approx(np.mean(colour_of(row["key"])), abs=1e-3)


class Private(ProcessingStage):
    """Its setting is not public, but decides all the same."""

    def __init__(self, least):
        self._least = least

    def process(self, task):
        return task


def test_what_of_a_stage_decides_its_result(folder, tmp_path):
    """A setting by whatever name does, and the stages' order; how fast and how loud it is does not."""

    def written(*between, **options):
        return run(folder, tmp_path / "out", *between, writer={"overwrite": True}, **options).summary.written

    assert written(Private(0)) == 3 and written(Private(0)) == 0 and written(Private(255)) == 3
    assert written(Shout(), Brightness()) == 3 and written(Shout(), Brightness()) == 0
    assert written(Brightness(), Shout()) == 3
    stages = stages_of(folder, tmp_path / "out", Brightness(), Shout(), batch=9)
    for stage in stages[1:-1]:
        stage.num_gpus_per_worker, stage.name = 0.5, "another"
    stages[-2].verbose, stages[-2].model_inference_batch_size = True, 2
    stages[-2].remove_image_data, stages[-2].model_dir = False, "/moved"
    assert Pipeline("test", stages=stages).run().summary.written == 0


def test_the_place_of_the_model_among_the_stages_decides(folder, tmp_path):
    """Also of the package's own stage, which is not described as a user's is."""
    embedding = ImageEmbeddingStage(model_name=str(tmp_path))
    steps = [
        RunStages(ChainSpec((ImageReaderStage(), *stages), "run"), "key", (("image_embedding", "embedding"),))
        for stages in ((embedding,), (Shout(), embedding), (embedding, Shout()))
    ]
    assert len({tokenize(step.recipe) for step in steps}) == 3


@pytest.mark.parametrize(
    "fields",
    [
        ["key", "__url__", "brightness"],
        {"key": None, "__url__": None, "brightness": None},
        {"key": None, "__url__": None, "brightness": "float64"},
    ],
)
def test_fields_that_are_asked_for(folder, tmp_path, fields):
    run(folder, tmp_path / "out", Brightness(typed=True), writer={"fields": fields})
    schema = read_output(tmp_path / "out").schema
    assert schema.names == list(fields)
    wide = isinstance(fields, dict) and fields["brightness"] is not None
    assert schema.field("brightness").type == (pa.float64() if wide else pa.float32())


def test_a_field_without_a_type_can_be_computed_but_not_written(folder, tmp_path):
    assert len(run(folder, None, Brightness(typed=False)).objects) == 30
    with pytest.raises(ConfigError, match=r"no stage says the type of \['brightness'\].*fields="):
        run(folder, tmp_path / "out", Brightness(typed=False))
    writer = {"fields": {"key": None, "brightness": "float32"}}
    run(folder, tmp_path / "out", Brightness(typed=False), writer=writer)
    assert read_output(tmp_path / "out").column_names == ["key", "brightness"]


def test_a_value_that_does_not_fit_its_type_names_itself(folder, tmp_path):
    class Wrong(Brightness):
        def process(self, task):
            for image in task.data:
                image.metadata["brightness"] = "bright"
            return task

    summary = run(folder, tmp_path / "out", Wrong()).summary
    assert set(summary.failed_shards) == {"00000", "00001", "00002"}
    reason = summary.failed_shards["00002"]
    for part in ("00002.tar/0000200", "'brightness'", "expected float", "found 'bright'"):
        assert part in reason


def test_what_stages_change_is_written(folder, tmp_path):
    run(folder, tmp_path / "out", Shout())
    table = read_output(tmp_path / "out")
    assert table["caption"].to_pylist() == [f"CAPTION OF {key}" for key in table["key"].to_pylist()]
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad={BAD})


def test_images_that_a_stage_leaves_out_are_counted(tmp_path, said):
    keys = write_dataset(tmp_path / "data", shards=2, key="{shard:03d}{sample:04d}", bad={"0010002": b""})
    stages = stages_of(tmp_path / "data", tmp_path / "out")
    stages.insert(3, KeepRed(4))  # the first shard's keys are below 64 * 64: no red in them
    result = Pipeline("filter", stages=stages).run()
    left = [key for key in keys if key.startswith("001")]
    table = read_output(tmp_path / "out")
    assert sorted(table["key"].to_pylist()) == left
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad={"0010002"})
    ((shard, fact),) = result.summary.filtered.items()
    assert shard == str(tmp_path / "data" / "00000.tar")
    assert fact["count"] == 10 and all(key.startswith("000") for key in fact["examples"])
    assert fact["by"] == {"KeepRed": 10} and "10 rows filtered out (10 by KeepRed), in 1 shard" in said.text
    again = Pipeline("filter", stages=stages).run().summary
    assert again.skipped == 2 and again.filtered == result.summary.filtered


def test_a_stage_may_drop_split_and_add_tasks(folder):
    class Split(ProcessingStage):
        def process(self, task):
            if any(image.image_id == BAD for image in task.data):
                return None
            return [ImageBatch([image]) for image in task.data]

    class Double(ProcessingStage):
        def process(self, task):
            yield task
            yield ImageBatch([ImageObject("new", "new", {"key": "new", "__url__": None})])

    result = run(folder, None, Split(), Double(), embeds=False)
    ids = [each.image_id for each in result.objects]
    lost = sum(fact["count"] for fact in result.summary.filtered.values())
    assert lost in (4, 5), "a batch of four, and perhaps what failed meanwhile"
    assert ids.count("new") == 30 - lost and len(ids) == 2 * (30 - lost) and BAD not in ids


class Edit(ProcessingStage):
    """Does something to one image."""

    def __init__(self, key, edit):
        self.key, self.edit = key, edit

    def process(self, task):
        for image in task.data:
            if image.image_id == self.key:
                self.edit(image)
        return task


KEY = "000020007"


def set_field(name, value):
    return lambda image: image.metadata.__setitem__(name, value)


def test_one_value_changed_leaves_all_others_as_they_were(folder, tmp_path):
    """To the bit, also what Python cannot hold: text that is not UTF-8, nanoseconds, dates before the year 1."""
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        rows = len(table)
        odd = {
            "bytes_as_text": pa.array([b"a\xff\xfe"] * rows, pa.binary()).view(pa.string()),
            "time": pa.array(np.arange(rows) + 1, pa.int64()).cast(pa.time64("ns")),
            "day": pa.array(np.arange(rows) - 10_000_000, pa.int32()).cast(pa.date32()),
            "kind": pa.array(["x", "y"] * (rows // 2)).dictionary_encode(),
        }
        for name, column in odd.items():
            table = table.append_column(name, column)
        pq.write_table(table, path)
    run(folder, tmp_path / "before")
    changes = {"bytes_as_text": "new", "time": None, "day": None, "kind": "z", "caption": "other", "width": 5}
    edit = Edit(KEY, lambda image: image.metadata.update(changes))
    run(folder, tmp_path / "after", edit)
    for path in sorted((tmp_path / "before").glob("*.parquet")):
        one, other = pq.read_table(path), pq.read_table(tmp_path / "after" / path.name)
        assert one["key"].to_pylist() == other["key"].to_pylist()
        rest = [row for row, key in enumerate(one["key"].to_pylist()) if key != KEY]
        for name in (*changes, "image_embedding"):
            pair = [table[name].take(rest) for table in (one, other)]
            if name == "kind":  # its dictionary has a word more
                pair = [column.cast(pa.string()) for column in pair]
            assert pair[0].equals(pair[1]), name
    table = pq.read_table(path_of(tmp_path / "after", 2))
    (row,) = table.slice(table["key"].to_pylist().index(KEY), 1).to_pylist()
    assert {name: row[name] for name in changes} == changes


def path_of(folder, shard):
    return folder / f"{shard:05d}.parquet"


def test_a_filter_leaves_odd_columns_alone(folder, tmp_path):
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        days = pa.array([-10_000_000, *range(1, len(table))], pa.int32()).cast(pa.date32())
        pq.write_table(table.append_column("day", days), path)
    first = pq.read_table(path_of(folder, 2))["key"][0].as_py()

    class Without(ProcessingStage):
        def process(self, task):
            task.data = [image for image in task.data if image.image_id != first]
            return task

    summary = run(folder, tmp_path / "out", Without()).summary
    assert summary.written == 3 and summary.failed_shards == {}
    assert pq.read_table(path_of(tmp_path / "out", 2))["day"].equals(
        pq.read_table(path_of(folder, 2))["day"].slice(1)
    )


def test_what_a_stage_takes_out_of_the_metadata_stays_in_the_row(folder, tmp_path):
    def forget(image):
        image.metadata = {"new": 1}

    run(folder, tmp_path / "out", Edit(KEY, forget))
    rows = {row["key"]: row for row in read_output(tmp_path / "out").to_pylist()}
    assert rows[KEY]["caption"] == f"caption of {KEY}" and rows[KEY]["__url__"].endswith("00002.tar")
    assert list(rows[KEY]["image_embedding"]) == pytest.approx(colour_of(KEY), abs=0.51)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (set_field("key", "other"), f"changed metadata['key'] from '{KEY}' to 'other'"),
        (set_field("__url__", None), "changed metadata['__url__'] from"),
        (set_field("width", 24.5), "field 'width': expected int64, found 24.5 (it would lose digits)"),
        (set_field("width", "wide"), "field 'width': expected int64, found 'wide'"),
        (set_field("caption", 7), "field 'caption': expected string, found 7"),
    ],
)
def test_what_a_stage_must_not_do_to_a_row_costs_its_shard(folder, tmp_path, edit, said):
    summary = run(folder, tmp_path / "out", Edit(KEY, edit)).summary
    assert list(summary.failed_shards) == ["00002"] and summary.written == 2
    assert f"00002.tar/{KEY}.png" in summary.failed_shards["00002"] and said in summary.failed_shards["00002"]


def test_a_stage_must_not_keep_images_back(tmp_path):
    """Across shards they would come into another shard's file."""
    write_dataset(tmp_path / "data", shards=3, samples=5)

    class Pairs(ProcessingStage):
        def setup(self, worker_metadata=None):
            self.kept = []

        def process(self, task):
            self.kept += task.data
            ready, self.kept = self.kept[: len(self.kept) // 2 * 2], self.kept[len(self.kept) // 2 * 2 :]
            return ImageBatch(ready)

    summary = run(tmp_path / "data", tmp_path / "out", Pairs(), batch=5).summary
    assert "00001" in summary.failed_shards and "kept this image back" in summary.failed_shards["00001"]


def test_a_stage_of_nemo_curator_hands_on_what_its_tasks_carry(tmp_path):
    """It makes a new batch, with all that the one before carried, as stages of 1.x do."""
    write_dataset(tmp_path / "data", shards=1)

    class Marks(ProcessingStage):
        def process(self, task):
            task._metadata["marked"] = len(task.data)
            task._stage_perf.append("Marks")
            return task

    class Flips(ProcessingStage):
        def process(self, task):
            return ImageBatch(
                task_id=f"{task.task_id}_flipped",
                dataset_name=task.dataset_name,
                data=task.data[::-1],
                _metadata=task._metadata,
                _stage_perf=task._stage_perf,
            )

    class Looks(ProcessingStage):
        def outputs(self):
            return ["data"], {"marked": pa.string()}

        def process(self, task):
            for image in task.data:
                image.metadata["marked"] = f"{task._metadata['marked']} {task._stage_perf}"
            return task

    run(tmp_path / "data", tmp_path / "out", Marks(), Flips(), Looks(), batch=10)
    assert read_output(tmp_path / "out").column("marked").to_pylist() == ["10 ['Marks']"] * 10


def test_a_column_that_the_dataset_has_can_be_made_anew(tmp_path):
    write_dataset(tmp_path / "data", shards=1)
    path = path_of(tmp_path / "data", 0)
    table = pq.read_table(path)
    old = {
        "aesthetic_score": pa.array([1.0] * 10),
        "old": pa.array(np.zeros((10, 2)).tolist(), pa.list_(pa.float32())),
    }
    for name, column in old.items():
        table = table.append_column(name, column)
    pq.write_table(table, path)

    class Scores(ProcessingStage):
        def inputs(self):
            return ["data"], ["old"]

        def outputs(self):
            return ["data"], {"aesthetic_score": None, "width": pa.float32()}

        def process(self, task):
            for image in task.data:
                assert image.metadata["old"].tolist() == [0, 0]
                image.aesthetic_score, image.metadata["width"] = 7.5, 2.5
                image.metadata["old"] = np.ones(2, np.float32)
            return task

    run(tmp_path / "data", tmp_path / "out", Scores())
    table = read_output(tmp_path / "out")
    assert set(table["aesthetic_score"].to_pylist()) == {7.5} and set(table["width"].to_pylist()) == {2.5}
    assert table.schema.field("width").type == pa.float32()
    assert set(map(tuple, table["old"].to_pylist())) == {(1.0, 1.0)}


def test_a_stage_that_was_tried_by_hand_can_be_run(folder, tmp_path):
    stages = stages_of(folder, tmp_path / "out")
    (group, *_) = stages[0].process()
    for batch in stages[1].process(group):
        stages[2].process(batch)
    assert Pipeline("again", stages=stages).run().summary.written == 3
    stages[2].teardown()


def test_a_stage_that_cannot_be_pickled(folder):
    with pytest.raises(ConfigError, match=r"stage Edit cannot be sent to the workers: .*made in setup\(\)"):
        run(folder, None, Edit(KEY, threading.Lock()))


@pytest.mark.parametrize("error", [ImageError("bad"), SystemExit(3), KeyError("x")])
def test_whatever_a_stage_raises_costs_its_shard(folder, error):
    def throw(image):
        raise error

    (reason,) = run(folder, None, Edit(KEY, throw)).summary.failed_shards.values()
    assert "00002.tar batch" in reason and "stage Edit" in reason


def test_an_iterator_for_a_list_costs_the_shard(folder):
    class Lazy(ProcessingStage):
        def process(self, task):
            task.data = filter(None, task.data)
            return task

    summary = run(folder, None, Lazy()).summary
    assert all(
        "data: expected a list of ImageObject, found filter" in why for why in summary.failed_shards.values()
    )
    assert len(summary.failed_shards) == 3


def test_vectors_that_a_stage_has_spoilt_say_so(folder, tmp_path):
    def spoil(image):
        image.embedding = np.array([np.nan, 0, 0], np.float32)

    stages = stages_of(folder, tmp_path / "out")
    stages.insert(3, Edit(KEY, spoil))
    Pipeline("spoil", stages=stages).run()
    (row,) = [row for row in read_output(tmp_path / "out").to_pylist() if row["key"] == KEY]
    assert row["image_embedding"] is None and row["image_error"] == "not finite: a stage gave NaN or infinity"


def test_added_images_are_written_last(folder, tmp_path):
    class Add(ProcessingStage):
        def process(self, task):
            url = task.data[0].metadata["__url__"]
            task.data.insert(
                0, ImageObject("x", "x", {"key": "x", "__url__": url, "width": 5}, error="made up")
            )
            return task

    run(folder, tmp_path / "out", Add(), batch=100)
    table = pq.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    assert len(table) == 11
    assert table[-1]["key"] == "x" and table[-1]["width"] == 5 and table[-1]["caption"] is None
    assert table[-1]["image_embedding"] is None and table[-1]["image_error"] == "made up"


def test_a_stage_that_fails_costs_its_shard(folder, tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    failing = FailsOn("000020004", flag)
    summary = run(folder, tmp_path / "out", failing).summary
    assert summary.written == 2 and not summary.complete
    (reason,) = summary.failed_shards.values()
    for part in ("00002.tar", "stage FailsOn", "ValueError: no such luck", "at line", "colour_stages.py"):
        assert part in reason
    flag.unlink()
    summary = run(folder, tmp_path / "out", failing).summary
    assert (summary.written, summary.skipped) == (1, 2)
    table = read_output(tmp_path / "out")
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad={BAD})


@pytest.mark.parametrize("size", [2, 5])
def test_groups_of_shards_have_a_file_each(tmp_path, size):
    write_dataset(tmp_path / "data", shards=5, bad={BAD: b""})
    (tmp_path / "data" / "00003.tar").write_bytes(b"no tar at all")
    summary = run(tmp_path / "data", tmp_path / "out", size=size).summary
    assert (summary.written, summary.rows) == (4, 40) and list(summary.failed_shards) == ["00003"]
    assert sorted(stamps(tmp_path / "out")) == [f"0000{number}.parquet" for number in (0, 1, 2, 4)]
    one_each = run(tmp_path / "data", tmp_path / "single").summary
    assert one_each.failed_shards == summary.failed_shards and one_each.reasons == summary.reasons
    for name in stamps(tmp_path / "out"):
        one, other = (pq.read_table(tmp_path / door / name) for door in ("out", "single"))
        assert one.equals(other)
    assert run(tmp_path / "data", tmp_path / "out").summary.skipped == 4, "groups do not decide what is made"
    collected = run(tmp_path / "data", size=size)
    assert len(collected.objects) == 40 and list(collected.summary.failed_shards) == ["00003"]


def test_only_some_shards(folder):
    stages = [
        FilePartitioningStage([folder / "00002.tar", str(folder / "00000.tar")], limit=1),
        ImageReaderStage(),
    ]
    assert {each.image_id[:5] for each in Pipeline("some", stages=stages).run().objects} == {"00000"}


class Halves(ProcessingStage):
    """Changes the vectors, and says what becomes of them."""

    def __init__(self, kind=None):
        self.kind = kind

    def outputs(self):
        return ["data"], {"embedding": self.kind}

    def process(self, task):
        for image in task.data:
            if image.error is None:
                image.embedding = np.asarray([image.metadata["width"], 1], np.float32)
        return task


@pytest.mark.parametrize("embeds", [True, False])
def test_a_stage_that_makes_vectors_says_how_long_they_are(folder, tmp_path, embeds):
    def stages(kind):
        made = stages_of(folder, tmp_path / "out", embeds=embeds)
        return [*made[:-1], Halves(kind), made[-1]]

    for kind in (None, pa.list_(pa.float32()), pa.float32()):
        with pytest.raises(ConfigError, match=r"stage Halves: must say how long its vectors are"):
            Pipeline("own", stages=stages(kind)).run()
    Pipeline("own", stages=stages(pa.list_(pa.float32(), 2))).run()
    table = read_output(tmp_path / "out")
    assert table.schema.field("image_embedding").type == pa.list_(pa.float32(), 2)
    vectors = {row["key"]: row["image_embedding"] for row in table.to_pylist()}
    assert vectors.pop(BAD) is None and set(map(tuple, vectors.values())) == {(24.0, 1.0)}
    info = read_record(str(tmp_path / "out" / "00000.parquet")).embeddings["image_embedding"]
    assert info["dim"] == 2 and "Halves" in (info["output"] if embeds else info["model"])
    assert Pipeline("own", stages=stages(pa.list_(pa.float32(), 2))).run().summary.written == 0


def test_an_image_that_lost_its_vector_says_so(folder, tmp_path):
    class Loses(ProcessingStage):
        def process(self, task):
            task.data[0].embedding = None
            return task

    stages = stages_of(folder, tmp_path / "out", batch=100)
    stages.insert(3, Loses())
    assert Pipeline("lost", stages=stages).run().summary.failed == 4
    rows = [row for row in read_output(tmp_path / "out").to_pylist() if row["image_embedding"] is None]
    assert len(rows) == 4 and all(row["image_error"] for row in rows)


def test_drop_failed(folder, tmp_path):
    summary = run(folder, tmp_path / "out", writer={"drop_failed": True}).summary
    assert summary.dropped == 1 and BAD not in read_output(tmp_path / "out")["key"].to_pylist()
    assert pq.read_table(tmp_path / "out.errors" / "00001.parquet")["key"].to_pylist() == [BAD]


def test_another_output_is_not_replaced(folder, tmp_path):
    run(folder, tmp_path / "out")
    stages = stages_of(folder, tmp_path / "out")

    class Other(ColourStage):
        def encoder_spec(self):
            return ColourReader(normalize_embeddings=True).encoder_spec()

    stages[2] = Other()
    with pytest.raises(OutputError, match=r"was made with .*overwrite=True"):
        Pipeline("other", stages=stages).run()
    stages[3] = ImageParquetWriterStage(tmp_path / "out", overwrite=True)
    assert Pipeline("other", stages=stages).run().summary.written == 3


def test_other_embeddings_stay_with_their_rows(folder, tmp_path):
    first = ColourReader(image_embedding_column="first")
    first(ImageTextPairDataset.from_webdataset(folder)).save_metadata(tmp_path / "first")
    for path in (tmp_path / "first").glob("*.parquet"):
        path.rename(folder / path.name)
    run(folder, tmp_path / "out")
    table = read_output(tmp_path / "out")
    assert table.column_names[-4:] == ["first", "__url__", "image_embedding", "image_error"]
    for name in ("first", "image_embedding"):
        check_colours(table["key"].to_pylist(), table[name].to_pylist(), bad={BAD})


def test_in_a_store_of_another_kind(folder, tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    for path in folder.iterdir():
        store.pipe_file(f"/pipeline/in/{path.name}", path.read_bytes())
    try:
        result = run("memory://pipeline/in", "memory://pipeline/out")
        assert (result.summary.rows, result.summary.failed) == (30, 1)
        assert run("memory://pipeline/in", "memory://pipeline/out").summary.skipped == 3
        local = tmp_path / "local"
        local.mkdir()
        for name in store.ls("/pipeline/out", detail=False):
            if name.endswith(".parquet"):
                (local / name.rpartition("/")[2]).write_bytes(store.cat_file(name))
        table = read_output(local)
        check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad={BAD})
    finally:
        store.rm("/pipeline", recursive=True)


def test_a_pipeline_without_a_model(folder, tmp_path):
    run(folder, tmp_path / "out", Brightness(), embeds=False)
    table = read_output(tmp_path / "out")
    assert table.column_names == ["key", "caption", "width", "__url__", "brightness", "image_error"]
    assert table["brightness"].null_count == 1
    stored = read_record(str(tmp_path / "out" / "00000.parquet"))
    assert stored.embeddings == {} and stored.id_col == "key"


def test_set_up_and_torn_down_once_a_run(folder, tmp_path):
    diary = tmp_path / "diary"
    diary.mkdir()
    stage = Diary(diary)
    for _ in range(2):
        run(folder, None, stage)
    counts = [path.name.partition("-")[0] for path in diary.iterdir()]
    assert {what: counts.count(what) for what in set(counts)} == {
        "node": 2,
        "setup": 2,
        "begin": 18,
        "end": 18,
        "teardown": 2,
    }
    assert set(vars(stage)) == {"folder", "seconds", "thread_safe"}, "the user's own object is not set up"


def test_one_run_does_not_tear_down_another(tmp_path):
    diary = tmp_path / "diary"
    diary.mkdir()
    one, other = (ChainSpec((ImageReaderStage(), Diary(diary)), f"{tmp_path.name}-{name}") for name in "ab")

    def torn():
        return sum(path.name.startswith("teardown") for path in diary.iterdir())

    with CHAINS.lease(one, one.build), CHAINS.lease(other, other.build):
        end_run(other.run)
        assert torn() == 0, "in use"
    assert torn() == 1 and CHAINS.specs() == [one]
    with pytest.raises(ClusterError, match="has ended"), CHAINS.lease(other, other.build):
        pass
    end_run(one.run)
    assert torn() == 2 and CHAINS.specs() == []


def test_a_stage_that_cannot_be_set_up_stops_the_run(folder, tmp_path):
    class Broken(ProcessingStage):
        def setup(self, worker_metadata=None):
            raise KeyError("no model")

        def process(self, task):
            return task

    diary = tmp_path / "diary"
    diary.mkdir()
    with pytest.raises(ConfigError, match=r"stage Broken: setup raised KeyError: 'no model', at line \d+ of"):
        run(folder, tmp_path / "out", Diary(diary), Broken())
    assert "teardown" in {path.name.partition("-")[0] for path in diary.iterdir()}
    assert not stamps(tmp_path / "out")


class Gives(ProcessingStage):
    name = "giver"

    def __init__(self, made):
        self.made = made

    def process(self, task):
        return self.made(task)


@pytest.mark.parametrize(
    ("made", "said"),
    [(lambda task: [task.data], "it gave list"), (lambda task: 5, "it gave int")],
)
def test_what_is_no_task_stops_the_run(folder, made, said):
    with pytest.raises(ConfigError, match=f"stage giver: process must give a Task.*{said}"):
        run(folder, None, Gives(made), embeds=False)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (["x"], "expected an ImageObject at place 0 of the batch, found str"),
        ([ImageObject("a", 5)], "image_id: expected text, found int"),
        ([ImageObject("a", "a", error="")], "image 'a': error: expected a reason or None, found ''"),
        (
            [ImageObject("a", "a", image_data=np.zeros((4, 4)))],
            "image 'a': image_data: expected uint8 (H, W, 3), found float64 (4, 4)",
        ),
        (
            [ImageObject("a", "a", embedding=[1.0])],
            "embedding: expected a NumPy array (dim,), found list",
        ),
    ],
)
def test_what_images_must_not_be_costs_the_shard(folder, data, said):
    def made(task):
        return ImageBatch(data) if task.task_id.endswith("00001.tar batch 0") else task

    summary = run(folder, None, Gives(made), embeds=False).summary
    (reason,) = summary.failed_shards.values()
    assert "00001.tar batch 0: stage giver: " in reason and said in reason


class Says(ProcessingStage):
    def __init__(self, made):
        self.made = made

    def outputs(self):
        return self.made

    def process(self, task):
        return task


class OwnReader(ImageReaderStage):
    def process(self, task):
        raise AssertionError("never called")


READER, PARTS = ImageReaderStage(), FilePartitioningStage("somewhere")


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([], "expected a FilePartitioningStage as stage 1, found nothing"),
        ([PARTS], "expected a ImageReaderStage as stage 2, found nothing"),
        ([READER], "stage image_reader: needs 'shards', which no stage before it makes"),
        (
            [READER, PARTS],
            "needs 'shards', which no stage before it makes; file_partitioning does, but comes after it",
        ),
        ([PARTS, ColourStage()], "stage image_embedding: needs 'image_data', which no stage before it makes"),
        ([PARTS, ColourStage(), READER], "image_reader does, but comes after it"),
        (
            [PARTS, READER, KeepRed(1), ColourStage()],
            "stage KeepRed: needs 'embedding'.*image_embedding does",
        ),
        (
            [PARTS, READER, ColourStage(remove_image_data=True), Brightness()],
            "stage brightness: needs 'image_data', which image_embedding removes: put it before that",
        ),
        (
            [PARTS, OwnReader(), ColourStage()],
            r"stage image_reader: overrides process\(\), which a pipeline does not call: override read\(\)",
        ),
        ([PARTS, READER, PARTS], "stage file_partitioning: is stage 3; there can be one only"),
        ([PARTS, READER, READER], "stage image_reader: is stage 3; there can be one only"),
        ([PARTS, READER, ImageParquetWriterStage("x"), ColourStage()], "is stage 3 of 4; put it last"),
        ([PARTS, READER, ColourStage(), ColourStage()], "an image has one .embedding."),
        (
            [PARTS, ImageReaderStage(num_gpus_per_worker=-1)],
            "num_gpus_per_worker=-1: expected a number of at least 0",
        ),
    ],
)
def test_stages_in_the_wrong_order(stages, said):
    pipeline = Pipeline("wrong", stages=stages)
    with pytest.raises(ConfigError, match=said):
        pipeline.build()
    with pytest.raises(ConfigError, match=said):
        pipeline.run()


def test_settings_in_other_words():
    """`with_` changes a copy, of one stage or of those that a composite one stands for."""
    changed = READER.with_(name="mine", resources=Resources(entire_gpu=True), batch_size=7, runtime_env={})
    assert (changed.name, changed.gpu_share(), changed.dali_batch_size) == ("mine", 1, 7)
    assert (READER.name, READER.gpu_share(), READER.batch_size) == ("image_reader", 0.25, 100)
    both = ImageReaderEmbeddingStage(dali_batch_size=3, model_inference_batch_size=5)
    changed = both.with_({"image_embedding": {"resources": Resources(gpus=0.5)}})
    parts = Pipeline("both", stages=[PARTS, changed, both]).stages[1:]
    assert [(type(part), part.gpu_share()) for part in parts] == [
        *((ImageReaderStage, 0.25), (ImageEmbeddingStage, 0.5)),
        *((ImageReaderStage, 0.25), (ImageEmbeddingStage, 0.25)),
    ]
    assert (parts[0].dali_batch_size, parts[1].model_inference_batch_size) == (3, 5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Resources(gpu_memory_gb=4), "gpu_memory_gb=4: expected 0.*as in gpus=0.25"),
        (lambda: Resources(gpus=-1), "gpus=-1: expected a number of at least 0"),
        (lambda: READER.with_(batch_size=0), "batch_size=0: expected"),
        (
            lambda: READER.with_(resources={"gpus": 1}),
            "resources={'gpus': 1}: expected curator_dask.stages.Res",
        ),
        (
            lambda: Pipeline("p", stages=[ImageReaderEmbeddingStage().with_({"reader": {}})]),
            r"with_: expected of \['image_reader', 'image_embedding'\], found \['reader'\]",
        ),
        (
            lambda: ImageReaderEmbeddingStage().process(None),
            "stage image_reader_embedding: add it to a pipeline",
        ),
    ],
)
def test_settings_that_cannot_be(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_field_that_nobody_makes(folder):
    class Needs(ProcessingStage):
        def inputs(self):
            return ["data"], ["caption", "likes"]

        def process(self, task):
            return task

    with pytest.raises(
        ConfigError, match=r"stage Needs: needs \['likes'\], which neither the dataset .*'caption'"
    ):
        run(folder, None, Needs())
    with pytest.raises(ConfigError, match=r"fields: the types of \['width'\] are settled: give None"):
        run(folder, folder / "out", writer={"fields": {"key": None, "width": "float64"}})
    with pytest.raises(ConfigError, match=r"fields: nobody makes \['likes'\]; there are \['key'"):
        run(folder, folder / "out", writer={"fields": ["key", "likes"]})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ImageReaderStage(0), "dali_batch_size=0: expected a whole number"),
        (lambda: ImageReaderStage(num_threads=1.5), "num_threads=1.5"),
        (lambda: ImageReaderStage(decoder="pil"), "decoder='pil': expected 'dali' or 'pillow'"),
        (lambda: ImageReaderStage(metadata="json"), "metadata='json'"),
        (lambda: ImageReaderStage(id_col="__url__"), "id_col='__url__': this name is taken"),
        (lambda: ImageEmbeddingStage(model_inference_batch_size=True), "model_inference_batch_size=True"),
        (lambda: FilePartitioningStage("x", 0), "files_per_partition=0"),
        (lambda: FilePartitioningStage("x", limit=-1), "limit=-1"),
        (
            lambda: FilePartitioningStage("x", file_extensions=[".tar", ".zip"]),
            r"\['.zip'\]: expected \['.tar'\]",
        ),
        (lambda: ImageParquetWriterStage(None), "path=None: expected a directory or URL"),
        (lambda: ImageParquetWriterStage("x", fields=[]), r"fields=\[\]: expected a list of names"),
        (
            lambda: ImageParquetWriterStage("x", image_embedding_column=""),
            "image_embedding_column='': expected a name",
        ),
        (
            lambda: ImageParquetWriterStage("x", storage_options="y"),
            "storage_options='y': expected a mapping",
        ),
        (lambda: ImageParquetWriterStage("x", fields={"a": 5}), "'a' has type 5"),
        (lambda: FilePartitioningStage(5), "file_paths=5: expected a path, or a list of paths"),
        (lambda: FilePartitioningStage("x", storage_options="y"), "storage_options='y': expected a mapping"),
        (lambda: Pipeline("x", stages=5), "stages=5: expected a list of stages"),
        (lambda: ImageParquetWriterStage("x", fields="key"), "fields='key': expected a list of names"),
        (lambda: ImageParquetWriterStage("x", fields={"a": "floatish"}), "'a' has type 'floatish'"),
        (lambda: Pipeline("x", stages=[ImageReaderStage]), "found ImageReaderStage: make an object of it"),
        (lambda: Pipeline("x").add_stage(print), "expected a stage, found print"),
        (
            lambda: Pipeline("x", stages=[PARTS, READER]).run(client="tcp://x"),
            "client: expected what get_client gives",
        ),
    ],
)
def test_arguments_that_cannot_be(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_no_shards(tmp_path):
    with pytest.raises(DatasetError, match=r"expected at least one \.tar file, found none"):
        run(tmp_path)


def test_describe_and_chaining(folder, tmp_path):
    pipeline = Pipeline(name="clip", description="colours")
    for stage in stages_of(folder, tmp_path / "out", Brightness(), size=2):
        assert pipeline.add_stage(stage) is pipeline
    text = pipeline.describe()
    for part in (
        "Pipeline 'clip': colours",
        "1. file_partitioning: FilePartitioningStage(file_paths=",
        "3. brightness: Brightness(typed=True)\n     needs image_data; makes brightness",
        "makes embedding; removes image_data",
        "stages 2 to 5 are one Dask task for 2 shards, which takes 0.25 of a GPU",
    ):
        assert part in text


def test_stages_by_themselves(folder):
    """What a pipeline does, by hand: in a notebook, to look at a few images."""
    (group, *others) = FilePartitioningStage(folder, 2).process()
    assert isinstance(group, FileGroupTask) and group.num_items == 2 and group.validate() and len(others) == 1
    batches = list(ImageReaderStage(batch_size=4).process(group))
    assert sum(batch.num_items for batch in batches) == 20
    assert all(image.image_data.shape[2] == 3 for batch in batches for image in batch.data if not image.error)
    stage = ColourStage(model_inference_batch_size=2)
    done = [stage.process(batch) for batch in batches]
    stage.teardown()
    objects = [image for batch in done for image in batch.data]
    check_colours([each.image_id for each in objects], [each.embedding for each in objects], bad={BAD})
    assert all(image.image_data is not None for image in objects if not image.error)


def test_verbose(folder, said):
    stages = stages_of(folder, None, verbose=True)
    stages[-1].verbose = True
    Pipeline("loud", stages=stages).run()
    assert "00001.tar batch 0: " in said.text and "1 failed; the stages after it took" in said.text
    assert "images embedded in" in said.text and "images/s" in said.text


def test_keys_with_odd_names(tmp_path):
    """Folders, dots, upper case suffixes, several images a sample, numbers as ids; the key is the sample's own."""
    members = [
        *[(f"a/b 1{end}", data) for end, data in ((".PNG", members_of("1")[0][1]), (".txt", b"one"))],
        ("0005.jpg.png", members_of("5")[0][1]),
        *members_of("0007"),
    ]
    write_tar(tmp_path / "data" / "00000.tar", members)
    result = run(tmp_path / "data")
    assert [each.image_id for each in result.objects] == ["a/b 1", "0005", "0007"]
    pq.write_table(pa.table({"id": pa.array([7, 5, 9])}), tmp_path / "data" / "00000.parquet")
    objects = {each.metadata["id"]: each for each in run(tmp_path / "data", id_col="id").objects}
    assert objects[7].image_id == "0007" and objects[5].image_id == "0005" and objects[9].image_id == "9"
    assert objects[9].error == "missing: no sample 9 in the tar"
    check_colours(["0007", "0005"], [objects[7].embedding, objects[5].embedding])


def test_why_an_image_is_missing(tmp_path):
    write_dataset(tmp_path / "data", shards=1, samples=2)
    rows = {"key": ["000000000", "gone"], "status": ["success", "failed_to_download"]}
    pq.write_table(pa.table(rows), tmp_path / "data" / "00000.parquet")
    (gone,) = [each for each in run(tmp_path / "data").objects if each.error]
    assert gone.error == "missing: no sample 'gone' in the tar (status: failed_to_download)"
    result = run(tmp_path / "data", tmp_path / "out")
    assert result.summary.orphans[str(tmp_path / "data" / "00000.tar")]["count"] == 1
    stored = read_record(str(tmp_path / "out" / "00000.parquet"))
    assert json.dumps(stored.remarks).count("orphans") == 1


def test_the_stage_that_the_docs_show(tmp_path):
    text = (Path(__file__).parent.parent / "docs" / "pipelines.md").read_text(encoding="utf-8")
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "(ProcessingStage)" in block
    ]
    names: dict = {}
    exec(code, names)
    striped = np.zeros((30, 30, 3), np.uint8)
    striped[::2] = 255
    file = io.BytesIO()
    Image.fromarray(striped).save(file, "PNG")
    members = [*members_of("0001"), *members_of("0002", file.getvalue()), *members_of("0003", b"")]
    write_tar(tmp_path / "data" / "00000.tar", members)
    summary = run(tmp_path / "data", tmp_path / "out", names["Contrast"]()).summary
    table = read_output(tmp_path / "out").to_pydict()
    assert table["key"] == ["0002", "0003"] and table["contrast"] == [127.5, None]
    assert table["image_error"][1] == "empty (0 bytes)"
    assert sum(fact["count"] for fact in summary.filtered.values()) == 1
