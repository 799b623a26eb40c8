"""Pipelines whose images go into new tars, without those that filters and lists of duplicates leave out."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colour_stages import Brightness, stages_of
from colours import check_colours, image_of, read_output, write_dataset, write_tar
from PIL import Image

from curator_dask.errors import ConfigError, OutputError
from curator_dask.pipeline import Pipeline
from curator_dask.stages import ProcessingStage
from curator_dask.stages.image import (
    ConvertImageBatchToDocumentBatchStage,
    ImageDuplicatesRemovalStage,
    ImageWriterStage,
    ParquetWriter,
)
from curator_dask.tasks import ImageBatch, ImageObject

SHARDS, SAMPLES, BAD = 3, 10, "000010004"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writer") / "data"
    write_dataset(folder, SHARDS, SAMPLES, bad={BAD: b"no image"})
    return folder


def samples_in(folder):
    """Members by key, of all tars in their order."""
    found, sizes = {}, []
    for path in sorted(folder.glob("*.tar")):
        keys = set()
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(member).read()
                keys.add(key)
        sizes.append(len(keys))
    return found, sizes


class Left(ProcessingStage):
    """Leaves out keys that end in 3."""

    def inputs(self):
        return ["data"], ["image_id"]

    def process(self, task):
        task.data = [image for image in task.data if not image.image_id.endswith("3")]
        return task

    def outputs(self):
        return ["data"], []


def pipeline(folder, out, *between, **options):
    return Pipeline("tars", stages=[*stages_of(folder, None, *between), ImageWriterStage(out, **options)])


def test_what_is_left_goes_into_full_tars_byte_for_byte(folder, client, tmp_path):
    out = tmp_path / "out"
    made = pipeline(folder, out, Brightness(), Left(), images_per_tar=8)
    summary = made.run(client).summary
    before, _ = samples_in(folder)
    after, sizes = samples_in(out)
    assert sizes == [8, 8, 8, 2]
    assert after == {key: value for key, value in before.items() if not key.endswith("3") and key != BAD}
    assert (summary.kept, summary.written, summary.skipped) == (26, 4, 0)
    beside = pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("*.parquet"))])
    assert beside["key"].to_pylist() == list(after)
    assert {"caption", "brightness", "image_embedding"} <= {*beside.column_names}
    again = made.run(client).summary
    assert (again.written, again.skipped) == (0, 4)


@pytest.mark.parametrize("with_shard", [False, True])
def test_named_duplicates_are_left_out(folder, client, tmp_path, with_shard):
    removed, other = ["000000001", "000020007"], "000010002"
    table = {"id": [*removed, other], "__url__": [str(folder / f"{n:05d}.tar") for n in (0, 2, 0)]}
    (tmp_path / "removal").mkdir()
    pq.write_table(pa.table(table if with_shard else {"id": removed}), tmp_path / "removal/a.parquet")
    pq.write_table(
        pa.table(table if with_shard else {"id": removed}).slice(0, 0), tmp_path / "removal/b.parquet"
    )
    stage = ImageDuplicatesRemovalStage(tmp_path / "removal")
    pipeline(folder, tmp_path / "out", stage).run(client)
    before, after = samples_in(folder)[0], samples_in(tmp_path / "out")[0]
    assert after == {
        key: value for key, value in before.items() if key not in (*removed, BAD)
    }  # not in that shard


def test_the_table_of_a_deduplication_names_those_that_stay_too(tmp_path):
    pq.write_table(pa.table({"id": ["a", "b"], "kept": [True, False]}), tmp_path / "duplicates.parquet")
    stage = ImageDuplicatesRemovalStage(tmp_path)
    batch = ImageBatch([ImageObject(image_id="a"), ImageObject(image_id="b")])
    assert [image.image_id for image in stage.process(batch).data] == ["a"]


def test_a_list_that_cannot_be_used(tmp_path):
    with pytest.raises(OutputError, match=r"no Parquet file is there. Give the folder with the ids"):
        ImageDuplicatesRemovalStage(tmp_path)
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"'image_id': a.parquet in .* has no such column; it has \['id'\]"):
        ImageDuplicatesRemovalStage(tmp_path, duplicate_id_field="image_id")
    one = ImageDuplicatesRemovalStage(tmp_path).ids
    pq.write_table(pa.table({"id": ["b"]}), tmp_path / "b.parquet")
    assert ImageDuplicatesRemovalStage(tmp_path).ids != one  # another list, and so another pipeline


def test_the_columns_of_a_pipeline_of_1x(folder, client, tmp_path):
    stages = [
        ConvertImageBatchToDocumentBatchStage(["image_id", "embedding"]),
        ParquetWriter(tmp_path / "out"),
    ]
    Pipeline("columns", stages=[*stages_of(folder), *stages]).run(client)
    table = read_output(tmp_path / "out")
    assert table["image_id"].equals(table["key"])
    check_colours(table["image_id"].to_pylist(), table["embedding"].to_pylist(), bad={BAD})
    with pytest.raises(ConfigError, match=r"found \['metadata'\]"):
        ConvertImageBatchToDocumentBatchStage(["image_id", "metadata"])


class Repainted(Left):
    """Changes every pixel, and leaves out keys that end in 3."""

    def outputs(self):
        return ["data"], ["image_data"]

    def process(self, task):
        for image in task.data:
            if image.error is None:
                image.image_data = 255 - image.image_data
        return super().process(task)


def repainted(folder, out, **options):
    stages = [*stages_of(folder, None, Repainted(), embeds=False), ImageWriterStage(out, **options)]
    return Pipeline("repainted", stages=stages)


@pytest.mark.parametrize(("image_format", "suffix"), [("JPEG", "jpg"), ("PNG", "png")])
def test_pixels_that_a_stage_has_changed_are_encoded(folder, client, tmp_path, image_format, suffix):
    made = repainted(folder, tmp_path / "out", image_format=image_format, images_per_tar=8)
    assert made.run(client).summary.kept == 26
    before, (after, sizes) = samples_in(folder)[0], samples_in(tmp_path / "out")
    assert sizes == [8, 8, 8, 2] and {*after} == {key for key in before if key[-1] != "3" and key != BAD}
    for key, members in after.items():
        assert {*members} == {suffix, "txt", "json"}
        assert members["txt"] == before[key]["txt"] and members["json"] == before[key]["json"]
        image = Image.open(io.BytesIO(members[suffix]))
        assert image.format == image_format
        wanted = 255 - np.asarray(Image.open(io.BytesIO(before[key]["png"])))
        np.testing.assert_allclose(np.asarray(image), wanted, atol=3 if suffix == "jpg" else 0)
    beside = pq.read_table(tmp_path / "out" / "00000.parquet")
    assert beside["key"].to_pylist() == [*after][:8] and "__image__" not in beside.column_names
    manifest = pq.read_table(tmp_path / "out.export" / "manifest").to_pylist()
    for row in manifest:
        copied = dict(zip(row["members"], row["source_offsets"], strict=True))
        assert [name for name, offset in copied.items() if offset == -1] == [f"{row['key']}.{suffix}"]
    assert made.run(client).summary.written == 0
    again = repainted(folder, tmp_path / "out", image_format=image_format, quality=50, images_per_tar=8)
    with pytest.raises(OutputError, match="overwrite"):
        again.run(client)


def test_images_are_encoded_where_that_is_asked_for(folder, client, tmp_path):
    pipeline = Pipeline(
        "encoded",
        stages=[*stages_of(folder, embeds=False), ImageWriterStage(tmp_path / "out", original_bytes=False)],
    )
    assert pipeline.run(client).summary.kept == 29
    assert all({*members} == {"jpg", "txt", "json"} for members in samples_in(tmp_path / "out")[0].values())


def test_a_new_image_never_takes_the_name_of_another_member(tmp_path, in_this_process):
    write_tar(
        tmp_path / "data/0.tar", [("a.png", image_of("1")), ("a.jpg.png", image_of("2")), ("a.jpg", b"")]
    )
    summary = repainted(tmp_path / "data", tmp_path / "out").run().summary
    assert (
        "the image that was encoded anew would be a.jpg, as another member is"
        in summary.failed_shards["00000"]
    )


def test_what_the_writer_cannot_do_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="without the pixels that Repainted changes"):
        repainted(folder, tmp_path, original_bytes=True).build()
    with pytest.raises(ConfigError, match=r"encodes images anew, and .* removes their pixels"):
        pipeline(folder, tmp_path, Repainted()).build()
    for options in (
        {"images_per_tar": 0},
        {"deterministic_name": False},
        {"quality": 0},
        {"image_format": "GIF"},
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            ImageWriterStage(tmp_path, **options)
    late = [*stages_of(folder), ImageWriterStage(tmp_path), Left()]
    with pytest.raises(ConfigError, match="is stage 4 of 5; put it last"):
        Pipeline("late", stages=late).build()
