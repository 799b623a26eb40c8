"""Pipelines of stages: the same rows and vectors as through the dataset API, and what a user's stages may do."""

from __future__ import annotations

import io
import json
import re
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
from colours import ColourReader, check_colours, colour_of, members_of, read_output, write_dataset, write_tar
from PIL import Image

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError, OutputError
from curator_dask.frames.parquet import read_metadata
from curator_dask.pipeline import Pipeline
from curator_dask.stages import ProcessingStage
from curator_dask.stages.image import (
    FilePartitioningStage,
    ImageEmbeddingStage,
    ImageParquetWriterStage,
    ImageReaderStage,
)
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


def test_a_second_run_writes_what_is_missing(folder, tmp_path):
    run(folder, tmp_path / "out")
    before = stamps(tmp_path / "out")
    summary = run(folder, tmp_path / "out").summary
    assert (summary.written, summary.skipped) == (0, 3) and stamps(tmp_path / "out") == before
    (tmp_path / "out" / "00001.parquet").unlink()
    summary = run(folder, tmp_path / "out", batch=7).summary
    assert (summary.written, summary.skipped) == (1, 2)
    summary = run(folder, tmp_path / "out", Brightness()).summary
    assert summary.written == 3, "another stage makes other rows"


def test_a_stage_whose_settings_change_makes_everything_anew(folder, tmp_path):
    assert run(folder, tmp_path / "out", FailsOn("none", tmp_path / "a")).summary.written == 3
    assert run(folder, tmp_path / "out", FailsOn("none", tmp_path / "a")).summary.written == 0
    assert run(folder, tmp_path / "out", FailsOn("none", tmp_path / "b")).summary.written == 3


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


@pytest.mark.parametrize(
    "fields", [["key", "__url__", "brightness"], {"key": None, "__url__": None, "brightness": "float64"}]
)
def test_fields_that_are_asked_for(folder, tmp_path, fields):
    run(folder, tmp_path / "out", Brightness(typed=True), writer={"fields": fields})
    schema = read_output(tmp_path / "out").schema
    assert schema.names == list(fields)
    assert schema.field("brightness").type == (pa.float64() if isinstance(fields, dict) else pa.float32())


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


def test_images_that_a_stage_leaves_out_are_counted(tmp_path, capsys):
    keys = write_dataset(tmp_path / "data", shards=2, key="{shard:03d}{sample:04d}", bad={"0010002": b""})
    stages = stages_of(tmp_path / "data", tmp_path / "out")
    stages.insert(3, KeepRed(4))  # the first shard's keys are below 64 * 64: no red in them
    result = Pipeline("filter", stages=stages).run()
    left = [key for key in keys if key.startswith("001")]
    table = read_output(tmp_path / "out")
    assert sorted(table["key"].to_pylist()) == left
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad={"0010002"})
    url = str(tmp_path / "data" / "000.tar") if (tmp_path / "data" / "000.tar").exists() else None
    ((shard, fact),) = result.summary.filtered.items()
    assert (url or shard).endswith(".tar") and fact["count"] == 10 and fact["examples"][0].startswith("000")
    assert "10 rows filtered out by stages" in capsys.readouterr().out
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


def test_drop_failed(folder, tmp_path):
    summary = run(folder, tmp_path / "out", writer={"drop_failed": True}).summary
    assert summary.dropped == 1 and BAD not in read_output(tmp_path / "out")["key"].to_pylist()
    assert pq.read_table(tmp_path / "out" / "_errors" / "00001.parquet")["key"].to_pylist() == [BAD]


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
    stored = read_metadata(str(tmp_path / "out" / "00000.parquet"))
    assert stored["embeddings"] == {} and stored["id_col"] == "key"


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


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda task: [task.data], "it gave list"),
        (lambda task: 5, "process must give a Task"),
        (lambda task: ImageBatch(["x"]), "expected an ImageObject at place 0 of the batch, found str"),
        (lambda task: ImageBatch([ImageObject("a", 5)]), "image_id: expected text, found int"),
        (
            lambda task: ImageBatch([ImageObject("a", "a", image_data=np.zeros((4, 4)))]),
            r"image 'a': image_data: expected uint8 \(H, W, 3\), found float64 \(4, 4\)",
        ),
        (
            lambda task: ImageBatch([ImageObject("a", "a", embedding=[1.0])]),
            r"embedding: expected a NumPy array \(dim,\), found list",
        ),
    ],
)
def test_what_a_stage_must_not_give(folder, made, said):
    class Gives(ProcessingStage):
        name = "giver"

        def process(self, task):
            return made(task)

    with pytest.raises(ConfigError, match=f"stage giver: .*{said}"):
        run(folder, None, Gives(), embeds=False)


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
        ([PARTS, READER, PARTS], "stage file_partitioning: is stage 3; there can be one only"),
        ([PARTS, READER, READER], "stage image_reader: is stage 3; there can be one only"),
        ([PARTS, READER, ImageParquetWriterStage("x"), ColourStage()], "is stage 3 of 4; put it last"),
        ([PARTS, READER, ColourStage(), ColourStage()], "an image has one embedding"),
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


def test_verbose(folder, capsys):
    stages = stages_of(folder, None, verbose=True)
    stages[-1].verbose = True
    Pipeline("loud", stages=stages).run()
    said = capsys.readouterr().out
    assert "00001.tar batch 0: " in said and "1 failed; the stages after it took" in said
    assert "images embedded in" in said and "images/s" in said


def test_keys_with_odd_names(tmp_path):
    """Folders, dots, upper case suffixes, several images a sample, numbers as ids; the key is the sample's own."""
    keys = ["a/b 1", "x.0005", "0007"]
    members = [
        *[(f"a/b 1{end}", data) for end, data in ((".PNG", members_of("1")[0][1]), (".txt", b"one"))],
        ("0005.jpg.png", members_of("5")[0][1]),
        *members_of("0007"),
    ]
    write_tar(tmp_path / "data" / "00000.tar", members)
    result = run(tmp_path / "data")
    assert [each.image_id for each in result.objects] == ["a/b 1", "0005", "0007"], keys
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
    stored = read_metadata(str(tmp_path / "out" / "00000.parquet"))
    assert json.dumps(stored["remarks"]).count("orphans") == 1


def test_the_stage_that_the_readme_shows(tmp_path):
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
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
