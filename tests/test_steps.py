"""Steps: the contract, held for the package's own and for some that a user might write."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import replace

import forked
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colour_stages import Brightness, ColourStage, KeepRed, Shout
from colours import ColourReader, check_colours, colour_of, image_of, read_output, write_dataset
from test_clip import make_clip

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.chunks import ChunkDecoder
from curator_dask.errors import ConfigError, DatasetError, ShardError
from curator_dask.frames.columns import list_to_matrix
from curator_dask.frames.parquet import read_record, write_table
from curator_dask.image.embedders import ClipImageEmbedder
from curator_dask.models.encoders import Encoder
from curator_dask.pipeline import Pipeline
from curator_dask.rows import images
from curator_dask.runs.step import ColumnStep, Made, Reading, Work, check_step
from curator_dask.stages import ProcessingStage
from curator_dask.stages.image import (
    FilePartitioningStage,
    ImageEmbeddingStage,
    ImageParquetWriterStage,
    ImageReaderStage,
)
from curator_dask.stages.live import end_run
from curator_dask.testing import StageTests, StepTests

pytestmark = pytest.mark.usefixtures("in_this_process")
BAD = {"000000001": b"", "000010003": b"GIF"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps") / "data"
    write_dataset(folder, 3, 10, bad=BAD)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    make_clip(folder)
    return folder


def dataset_of(folder):
    return ImageTextPairDataset.from_webdataset(folder)


def rows_of(folder, dataset=None):
    return (dataset or dataset_of(folder)).metadata.partitions[0].compute()


class Redness(ColumnStep):
    """A score from the vector."""

    needs = frozenset({"vectors"})
    columns = {"redness": pa.float32()}  # noqa: RUF012

    def __init__(self, column="image_embedding"):
        self.column = column

    def compute(self, rows):
        matrix, valid = list_to_matrix(rows.column(self.column))
        red = matrix[:, 0] if matrix.shape[1] else np.zeros(len(matrix))
        return {"redness": pa.array(red, mask=~valid)}


class Digest(ColumnStep):
    """A column from the encoded bytes, which need no decoding."""

    needs = frozenset({"bytes"})
    columns = {"sha256": pa.string()}  # noqa: RUF012

    def reading(self, rows):
        return Reading("key", "dali", 10**8)

    def begin(self, rows):
        return nullcontext(_Digesting(len(rows)))

    def compute(self, rows):
        raise AssertionError("it works on bytes")


class _Digesting(Work):
    def __init__(self, rows):
        self.found = [None] * rows

    def take_bytes(self, row, image):
        if not isinstance(image, Exception):
            self.found[row] = hashlib.sha256(image).hexdigest()

    def finish(self):
        return Made({"sha256": pa.array(self.found, pa.string())})


class TestOwnEmbedder(StepTests):
    @pytest.fixture
    def step(self, folder):
        return ColourReader()(dataset_of(folder))._steps[-1]

    @pytest.fixture
    def frame(self, folder):
        return rows_of(folder)


class TestClip(TestOwnEmbedder):
    @pytest.fixture
    def step(self, folder, clip):
        return ClipImageEmbedder(clip)(dataset_of(folder))._steps[-1]


class TestStages(TestOwnEmbedder):
    """A pipeline is a step, too."""

    @pytest.fixture
    def step(self, folder, clip, tmp_path, monkeypatch):
        stages = [
            FilePartitioningStage(str(folder)),
            ImageReaderStage(dali_batch_size=4),
            ImageEmbeddingStage(model_name=str(clip)),
            ImageParquetWriterStage(tmp_path / "out"),
        ]
        pipeline, found = Pipeline("steps", stages=stages), []
        monkeypatch.setattr(Pipeline, "_run", lambda self, dataset, step, layout: found.append(step))
        ended = []
        monkeypatch.setattr("curator_dask.pipeline.end_run", ended.append)
        pipeline.run()
        assert ended == [found[0].chain.run]
        yield found[0]
        end_run(found[0].chain.run)


class TestScore(StepTests):
    @pytest.fixture
    def step(self):
        return Redness()

    @pytest.fixture
    def frame(self, folder):
        return rows_of(folder, ColourReader()(dataset_of(folder)))


def test_contracts_without_their_fixtures_say_so(tmp_path):
    # In a process of its own: one pytest within another puts `sys.modules` back, under threads that import.
    names = [contract.__name__ for contract in (StepTests, StageTests)]
    (tmp_path / "test_mine.py").write_text(
        f"from curator_dask.testing import {', '.join(names)}\n"
        + "".join(f"class TestMine{name}({name}): ...\n" for name in names)
    )
    options = ["-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    process = forked.start(pytest.main, options, log=tmp_path / "log")
    process.join(120)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 0, said  # as `main` returns what it found
    for name in names:
        assert f"TestMine{name} must have a fixture" in said


class Swaps(Redness):
    """Gives rows their neighbour's score."""

    def compute(self, rows):
        return {"redness": pa.array(np.roll(np.asarray(super().compute(rows)["redness"]), 1))}


class Turns(Redness):
    """Gives the first row the last one's score."""

    def compute(self, rows):
        return {"redness": pa.array(np.asarray(super().compute(rows)["redness"])[::-1])}


class Drops(Redness):
    """Loses a row, and says that it does not."""

    def __call__(self, frame):
        return super().__call__(frame).iloc[1:]


class Forgets(Redness):
    """Holds what changes with each copy."""

    @property
    def recipe(self):
        return ("forgets", id(self))


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (Swaps, "test_each_row_gets_its_own"),
        (Turns, "test_each_row_gets_its_own"),
        (Drops, "test_rows_stay_in_place"),
        (Forgets, "test_it_travels"),
    ],
)
def test_the_contract_finds_what_breaks_it(folder, kind, test):
    frame = rows_of(folder, ColourReader()(dataset_of(folder)))
    with pytest.raises(AssertionError):
        getattr(StepTests(), test)(kind(), frame)
    getattr(StepTests(), test)(Redness(), frame)


class SwapsVectors(ProcessingStage):
    """Gives two images each other's vector."""

    def inputs(self):
        return ["data"], ["embedding"]

    def outputs(self):
        return ["data"], {"embedding": pa.list_(pa.float32(), 8)}

    def process(self, task):
        good = [image for image in task.data if not image.error]
        if len(good) > 1:
            good[0].embedding, good[1].embedding = good[1].embedding, good[0].embedding
        return task


def test_the_contract_of_stages_finds_swapped_vectors():
    test, batch = StageTests(), StageTests.batch.__wrapped__(StageTests())
    with pytest.raises(AssertionError, match="0 has another embedding when it is alone"):
        test.test_each_image_gets_its_own(SwapsVectors(), batch)


@pytest.mark.parametrize("columns", [["score"], {3: pa.float32()}, {"score": "float"}, {}])
def test_columns_without_names_and_types_are_refused(columns):
    step = Redness()
    step.columns = columns
    with pytest.raises(ConfigError, match=r"Redness\.columns: expected names with types"):
        check_step(step)


class TestBrightness(StageTests):
    @pytest.fixture
    def stage(self):
        return Brightness()


class TestShout(StageTests):
    @pytest.fixture
    def stage(self):
        return Shout()


class TestKeepRed(StageTests):
    @pytest.fixture
    def stage(self):
        return KeepRed(0.0)


class TestEmbedding(StageTests):
    @pytest.fixture
    def stage(self):
        return ColourStage(model_inference_batch_size=3)


class TestSecondEmbedding(StageTests):
    @pytest.fixture
    def stage(self):
        return ColourStage(model_inference_batch_size=3, embedding_field="second")


# One pass


def test_steps_that_follow_one_another_are_one_pass(folder, monkeypatch):
    """Two models, a score of each and a digest: one reading of each shard, one decoding of each image."""
    read, decoded = [], []
    admit, opened = ChunkDecoder.admit, images.open_shard
    monkeypatch.setattr(
        ChunkDecoder,
        "admit",
        lambda self, chunk, row, data: (decoded.append(row), admit(self, chunk, row, data))[1],
    )
    monkeypatch.setattr(
        images, "open_shard", lambda url, **settings: (read.append(url), opened(url, **settings))[1]
    )
    small = ColourReader(image_embedding_column="second", batch_size=3)
    dataset = small(ColourReader()(dataset_of(folder)))
    dataset = dataset.apply(Redness()).apply(Digest())
    frame = dataset.compute()
    assert len(decoded) == 30 and len(read) == 3 == len(set(read))
    check_colours(frame["key"], frame["image_embedding"], BAD)
    check_colours(frame["key"], frame["second"], BAD)
    for key, red, digest in zip(frame["key"], frame["redness"], frame["sha256"], strict=True):
        assert digest == hashlib.sha256(BAD.get(key, image_of(key))).hexdigest()
        assert key in BAD or red == pytest.approx(colour_of(key)[0], abs=0.51)
    assert list(frame.columns)[-5:] == [
        "image_embedding",
        "second",
        "redness",
        "sha256",
        "image_error",
    ] or list(frame.columns)[-3:] == ["image_error", "redness", "sha256"]


def test_what_is_looked_at_and_what_is_run_are_the_same(folder, tmp_path):
    """`metadata.compute()` and `save_metadata` give the same rows, filters and own functions between them or not."""
    dataset = ColourReader(image_embedding_column="second")(ColourReader()(dataset_of(folder)))
    frames = {
        "plain": dataset.metadata,
        "filtered": dataset.metadata[dataset.metadata["key"] > "000010002"],
        "assigned": dataset.metadata.assign(wide=dataset.metadata["width"] * 2),
        "selected": dataset.metadata[["key", "__url__", "second", "image_error"]],
    }
    for name, frame in frames.items():
        dataset.with_metadata(frame).save_metadata(tmp_path / name)
        expected = frame.compute()
        found = read_output(tmp_path / name)
        assert found.column_names == list(expected.columns)
        assert found["key"].to_pylist() == expected["key"].tolist(), name
        check_colours(found["key"].to_pylist(), found["second"].to_pylist(), BAD)


def test_a_reason_names_the_column_that_it_is_of(folder, tmp_path):
    """An image that is too large for one model alone has the other's vector."""
    key = "000000005"
    height, width = 20, 24 + len(key) % 5
    strict = ColourReader(image_embedding_column="second", max_pixels=height * width - 1)
    summary = strict(ColourReader()(dataset_of(folder))).save_metadata(tmp_path / "out")
    table = read_output(tmp_path / "out")
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), BAD)
    assert table["second"].null_count == 30
    for key, reason in zip(table["key"].to_pylist(), table["image_error"].to_pylist(), strict=True):
        assert reason.startswith("[second] too large: " if key not in BAD else ("empty", "not an image")), (
            reason
        )
    assert summary.reasons == {"too large (second)": 28, "empty": 1, "not an image": 1}
    assert summary.failed == 30 == sum(summary.reasons.values())


def test_a_failure_is_counted_once_for_two_models(folder, tmp_path):
    dataset = ColourReader(image_embedding_column="second")(ColourReader()(dataset_of(folder)))
    summary = dataset.save_metadata(tmp_path / "out")
    assert (summary.rows, summary.failed) == (30, 2)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda: Redness, "is a class"),
        (lambda: object(), "lacks arguments"),
        (lambda: type("Typeless", (Redness,), {"columns": {"x": "float32"}})(), "types of pyarrow's"),
        (lambda: type("Greedy", (Redness,), {"needs": frozenset({"weather"})})(), "weather"),
        (lambda: type("Taker", (Redness,), {"columns": {"key": pa.string()}})(), "column of the keys"),
    ],
)
def test_what_is_no_step_is_refused(folder, wrong, match):
    with pytest.raises(ConfigError, match=match):
        ColourReader()(dataset_of(folder)).apply(wrong())


def test_a_score_without_vectors_is_refused(folder):
    with pytest.raises(DatasetError, match="needs vectors"):
        dataset_of(folder).apply(Redness())


def test_an_error_of_ones_own_names_its_step_and_column(folder, tmp_path):
    step = type("Dividing", (Redness,), {"compute": lambda self, rows: 1 / len(rows.names[:0])})()
    summary = ColourReader()(dataset_of(folder)).apply(step).save_metadata(tmp_path / "out")
    assert {*summary.failed_shards.values()} == {
        "Dividing (column 'redness'): ZeroDivisionError: division by zero"
    }


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({}, "expected values of 'redness'"),
        ({"redness": [1.0]}, "expected a value for each of"),
        ({"redness": ["a"] * 10}, "expected float"),
    ],
)
def test_a_step_that_breaks_its_promise_costs_its_shard(folder, tmp_path, values, match):
    step = type("Broken", (Redness,), {"compute": lambda self, rows: values})()
    summary = ColourReader()(dataset_of(folder)).apply(step).save_metadata(tmp_path / "out")
    assert len(summary.failed_shards) == 3 and all(match in why for why in summary.failed_shards.values())
    with pytest.raises(ShardError, match=match):
        step(rows_of(folder, ColourReader()(dataset_of(folder))))


# What a rerun takes over


def test_a_score_that_is_added_embeds_nothing_again(folder, tmp_path, monkeypatch):
    forward, calls = Encoder.__call__, []
    monkeypatch.setattr(
        Encoder, "__call__", lambda self, pixels: (calls.append(len(pixels)), forward(self, pixels))[1]
    )
    embedded = ColourReader()(dataset_of(folder))
    embedded.save_metadata(tmp_path / "out")
    before = read_output(tmp_path / "out")
    assert sum(calls) == 28
    calls.clear()
    summary = embedded.apply(Redness()).save_metadata(tmp_path / "out")
    assert (summary.written, summary.failed, calls) == (3, 2, [])
    table = read_output(tmp_path / "out")
    for name in before.column_names:
        assert table[name].equals(before[name]), name
    assert table["redness"].null_count == 2
    assert embedded.apply(Redness()).save_metadata(tmp_path / "out").skipped == 3
    # Another model beside it embeds with that alone; other pixels, keys or shards are embedded again.
    second = ColourReader(image_embedding_column="second")
    second(embedded.apply(Redness())).save_metadata(tmp_path / "out")
    assert sum(calls) == 28
    calls.clear()
    ColourReader(max_pixels=10**7)(dataset_of(folder)).save_metadata(tmp_path / "out", overwrite=True)
    assert sum(calls) == 28


def test_a_shard_that_changed_is_embedded_again(tmp_path):
    write_dataset(tmp_path / "data", 2, 5)
    ColourReader()(dataset_of(tmp_path / "data")).save_metadata(tmp_path / "out")
    write_dataset(tmp_path / "data", 1, 5, bad={"000000002": b"now bad"})
    summary = ColourReader()(dataset_of(tmp_path / "data")).apply(Redness()).save_metadata(tmp_path / "out")
    assert (summary.written, summary.failed) == (2, 1)
    table = read_output(tmp_path / "out")
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), {"000000002"})


def with_turned_keys(frame):
    return frame.assign(key=frame["key"].to_numpy()[::-1])


@pytest.mark.parametrize(
    ("change", "taken_over"),
    [
        (lambda frame: frame.map_partitions(with_turned_keys, meta=frame._meta), False),
        (lambda frame: frame.fillna({"image_error": "none"}), False),
        (lambda frame: frame.assign(key=frame["key"] + "0"), False),
        (lambda frame: frame[frame["key"] != ""].assign(two=2), True),
    ],
)
def test_vectors_that_may_have_been_touched_are_not_taken_over(folder, tmp_path, change, taken_over):
    embedded = ColourReader()(ImageTextPairDataset.from_webdataset(folder))
    changed = embedded.with_metadata(change(embedded.metadata))
    changed.save_metadata(tmp_path / "out")
    assert all(
        bool(read_record(str(path)).read_by) == taken_over for path in (tmp_path / "out").glob("*.parquet")
    )
    embedded.save_metadata(tmp_path / "out", overwrite=True)
    table = pq.read_table(tmp_path / "out")
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), BAD)


def test_vectors_in_place_are_not_taken_over_from_what_a_function_made_of_them(tmp_path):
    folder = tmp_path / "data"
    write_dataset(folder, 1, 3)
    ColourReader()(ImageTextPairDataset.from_webdataset(str(folder))).save_metadata()
    again = ImageTextPairDataset.from_webdataset(str(folder))
    turned = again.metadata.map_partitions(with_turned_keys, meta=again.metadata._meta)
    ColourReader(image_embedding_column="other")(again.with_metadata(turned)).save_metadata()
    (path,) = folder.glob("*.parquet")
    assert set(read_record(str(path)).read_by) == {"other"}


def test_what_was_given_up_is_not_taken_over(folder, tmp_path):
    embedded = ColourReader()(dataset_of(folder))
    embedded.save_metadata(tmp_path / "out")
    path = tmp_path / "out" / "00001.parquet"
    record, table = read_record(str(path)), pq.read_table(path)
    lost = {
        "image_embedding": pa.nulls(len(table), table.schema.field("image_embedding").type),
        "image_error": pa.array(["gave up: 4 workers died"] * len(table)),
    }
    for name, values in lost.items():
        table = table.set_column(table.column_names.index(name), name, values)
    write_table(str(path), table, replace(record, fingerprint=""))
    summary = embedded.save_metadata(tmp_path / "out")
    assert (summary.written, summary.failed) == (1, 1)
    table = read_output(tmp_path / "out")
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), BAD)


# Pipelines


def pipeline(folder, out, clip, *between, second=None):
    stages = [
        FilePartitioningStage(str(folder)),
        ImageReaderStage(dali_batch_size=4),
        *between,
        ImageEmbeddingStage(model_name=str(clip), model_inference_batch_size=3),
    ]
    if second is not None:
        stages.append(ImageEmbeddingStage(model_name=str(second), embedding_field="second"))
    return Pipeline("two", stages=[*stages, ImageParquetWriterStage(out)])


def test_two_models_in_one_pipeline(folder, clip, tmp_path):
    """Each column is what the dataset API makes with that model, and goes on where that stopped."""
    other = tmp_path / "other"
    make_clip(other, size=96)
    pipeline(folder, tmp_path / "stages", clip, second=other).run()
    dataset = ClipImageEmbedder(clip)(dataset_of(folder))
    dataset = ClipImageEmbedder(other, image_embedding_column="second")(dataset)
    summary = dataset.save_metadata(tmp_path / "dataset")
    one, two = read_output(tmp_path / "stages"), read_output(tmp_path / "dataset")
    assert one.schema == two.schema and summary.rows == 30
    for name in ("image_embedding", "second"):
        (vectors, valid), (others, also) = (list_to_matrix(each[name]) for each in (one, two))
        assert (valid == also).all() and valid.sum() == 28
        np.testing.assert_allclose(vectors, others, atol=2e-6)
    assert not np.allclose(*(list_to_matrix(one[name])[0] for name in ("image_embedding", "second")))
    assert dataset.save_metadata(tmp_path / "stages").skipped == 3
    assert pipeline(folder, tmp_path / "dataset", clip, second=other).run().summary.skipped == 3


def test_a_score_stage_changes_no_vector_and_makes_none_again(folder, clip, tmp_path, monkeypatch):
    pipeline(folder, tmp_path / "out", clip).run()
    before, made = (
        read_output(tmp_path / "out"),
        read_record(str(tmp_path / "out" / "00000.parquet")).embeddings,
    )
    forward, calls = Encoder.__call__, []
    monkeypatch.setattr(
        Encoder, "__call__", lambda self, pixels: (calls.append(len(pixels)), forward(self, pixels))[1]
    )
    summary = pipeline(folder, tmp_path / "out", clip, Brightness()).run().summary
    assert (summary.written, calls) == (3, [])
    table = read_output(tmp_path / "out")
    assert table["image_embedding"].equals(before["image_embedding"]) and table["brightness"].null_count == 2
    assert read_record(str(tmp_path / "out" / "00000.parquet")).embeddings == made


@pytest.mark.parametrize("field", ["caption", "image_data", "image_embedding"])
def test_a_second_models_field_must_be_free(folder, clip, tmp_path, field):
    stages = pipeline(folder, tmp_path / "out", clip, second=clip).stages
    stages[-2].embedding_field = field
    with pytest.raises(ConfigError, match=f"embedding_field='{field}': the name is taken"):
        Pipeline("taken", stages=stages).run()


def test_a_column_that_is_made_twice_is_refused(folder):
    embedded = ColourReader()(dataset_of(folder))
    with pytest.raises(ConfigError, match="made by a step before"):
        ColourReader()(embedded)
    with pytest.raises(ConfigError, match="made by a step before"):
        embedded.apply(type("Same", (Redness,), {"columns": {"image_embedding": pa.float32()}})())


def test_a_filter_leaves_what_a_retry_needs(folder, clip, tmp_path):
    class Keeps(KeepRed):
        def outputs(self):
            return [], []

    stages = pipeline(folder, tmp_path / "out", clip).stages
    stages.insert(-1, Keeps(-100))
    Pipeline("kept", stages=stages).run()
    record = read_record(str(tmp_path / "out" / "00000.parquet"))
    assert record.settings["image_embedding"]["model_name"] == str(clip) and record.derived == ()


class Inverts(Brightness):
    """Says that it makes a score, and changes the pixels."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def process(self, task):
        for image in task.data:
            if image.error is None and self.how == "in place":
                image.image_data[:] = 255 - image.image_data
            elif image.error is None:
                image.image_data = 255 - image.image_data
        return super().process(task)


@pytest.mark.parametrize("how", ["in place", "anew"])
def test_a_stage_that_touches_pixels_unsaid_is_stopped(folder, clip, tmp_path, how):
    with pytest.raises(ConfigError, match=r"process\(\) changes image_data.*outputs\(\) does not say so"):
        pipeline(folder, tmp_path / "out", clip, Inverts(how)).run()
