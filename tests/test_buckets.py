"""Aspect-ratio buckets: which size an image gets, and what its file is when it is cropped to it."""

from __future__ import annotations

import io
import itertools
import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import colour_of, write_dataset, write_tar
from PIL import Image, ImageOps
from test_smaller import apart, exif, opened, photograph, saved
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.curation import Recipe, curate
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.cropping import Crop
from curator_dask.decode.smaller import SmallerImages, make_smaller
from curator_dask.errors import ConfigError, DatasetError, OutputError
from curator_dask.image.statistics import AspectBuckets, ImageStatistics
from curator_dask.image.statistics.buckets import bucket_sizes
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output

pytestmark = pytest.mark.usefixtures("in_this_process")

ANY = SmallerImages(any_size=True)


def sizes_by_novelai(resolution, step, low, high):
    """As the post says it: of each width the largest height within the pixels, by trying; the same turned."""
    found = {(resolution, resolution)}
    for one in range(low, high + 1, step):
        fit = [other for other in range(low, high + 1, step) if one * other <= resolution**2]
        if fit:
            found |= {(one, max(fit)), (max(fit), one)}
    return sorted(found)


@pytest.mark.parametrize(
    ("resolution", "step", "low", "high"), [(1024, 64, 512, 2048), (512, 8, 256, 768), (96, 32, 32, 192)]
)
def test_sizes_are_those_of_the_published_algorithm(resolution, step, low, high):
    found = bucket_sizes(resolution, step, low, high)
    assert found == sizes_by_novelai(resolution, step, low, high)
    assert all((high, wide) in found for wide, high in found)  # turned


def test_an_image_gets_the_nearest_ratio():
    sizes = sizes_by_novelai(1024, 64, 512, 2048)
    assert bucket_sizes(1024) == sizes and (832, 1216) in sizes
    rng = np.random.default_rng(7)
    pixels = np.exp(rng.uniform(math.log(20), math.log(9000), (2000, 2))).round()
    found = AspectBuckets().step().names_of(*pixels.T).to_pylist()
    turned = AspectBuckets().step().names_of(*pixels.T[::-1]).to_pylist()
    for (width, height), name, other in zip(pixels, found, turned, strict=True):
        far = {size: abs(math.log(size[0] / size[1] * height / width)) for size in sizes}
        mine = tuple(map(int, name.split("x")))
        assert far[mine] == pytest.approx(min(far.values()), abs=1e-9)
        # What is turned gets the same turned: a difference of ratios, not of their logarithms, would not.
        assert other == f"{mine[1]}x{mine[0]}"
    both = AspectBuckets(max_ratio=2).sizes[0]
    assert max(max(size) / min(size) for size in both) <= 2 and set(both) < set(sizes)


def test_no_image_is_enlarged_where_that_is_not_wanted():
    widths, heights = np.array([[2000, 900, 600, 500, 700, np.nan], [2100, 905, 600, 500, 300, 5]])
    every = AspectBuckets([512, 1024, 768]).step().names_of(widths, heights)
    assert every.to_pylist() == ["1024x1024", "768x768", "512x512", "512x512", "768x320", None]
    some = AspectBuckets([1024, 768, 512], upscale=False).step().names_of(widths, heights)
    assert some.to_pylist() == ["1024x1024", "768x768", "512x512", None, None, None]
    listed = AspectBuckets(["1024x1024", "832x1216"]).step().names_of(np.array([10, 10]), np.array([10, 15]))
    assert listed.to_pylist() == ["1024x1024", "832x1216"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"resolution": 1000}, "resolution=1000.*a multiple of the step 64"),
        ({"resolution": []}, "expected resolutions"),
        ({"resolution": ["1024x"]}, "'1024x': expected width and height"),
        ({"resolution": ["20000x64"]}, "at most 16383"),
        ({"resolution": [1024, 512], "min_side": 256}, "for one resolution"),
        ({"min_side": 1088}, "expected it between"),
        ({"max_ratio": 0.5}, "max_ratio=0.5"),
        ({"step": 0}, "step=0"),
        ({"column": "width"}, "expected three names"),
    ],
)
def test_what_cannot_be_asked(given, said):
    with pytest.raises(ConfigError, match=said):
        AspectBuckets(**given)


def by_hand(image: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, int, int]:
    """By Pillow: upright, resized to cover, and cropped; with what is cut off on the left and above."""
    image = ImageOps.exif_transpose(image)
    scale = max(size[0] / image.width, size[1] / image.height)
    covered = [max(side, round(own * scale)) for side, own in zip(size, image.size, strict=True)]
    left, top = ((own - side) // 2 for own, side in zip(covered, size, strict=True))
    whole = image.resize(tuple(covered), Image.Resampling.LANCZOS)
    return whole.crop((left, top, left + size[0], top + size[1])), left, top


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_what_pillow_makes_by_hand(orientation):
    data = saved(photograph(241, 180), "PNG", exif=exif(orientation))
    for size in ((64, 48), (47, 64), (320, 200), (33, 96)):
        made = make_smaller(data, ANY, size=size)
        wanted, left, top = by_hand(opened(data), size)
        found = opened(made.data)
        assert found.size == size == (made.width, made.height) and found.getexif().get(0x112, 1) == 1
        difference = np.abs(np.asarray(found, int) - np.asarray(wanted, int))
        # Other images are halved first where they are much larger: near, not alike.
        assert difference.max() <= (2 if max(size) > 60 else 12) and difference.mean() < 0.6
        upright = (180, 241) if orientation > 4 else (241, 180)
        assert (made.crop.width, made.crop.height) == upright
        assert (made.crop.left, made.crop.top) == (left, top)
        assert made.crop.enlarged == (upright[0] < size[0] or upright[1] < size[1])


def test_a_large_jpeg_is_decoded_smaller_and_as_near():
    for orientation, size in itertools.product((1, 3, 6), ((90, 64), (64, 96))):
        data = saved(photograph(1001, 747), "JPEG", quality=95, exif=exif(orientation))
        made = make_smaller(data, SmallerImages(any_size=True, image_format="png"), size=size)
        wanted, _, _ = by_hand(opened(data), size)
        assert apart(opened(made.data), wanted) < 0.4


def test_a_file_that_has_the_size_stays():
    data = saved(photograph(64, 48), "JPEG", exif=exif(1))
    made = make_smaller(data, ANY, size=(64, 48))
    assert made.data is None and made.crop == Crop(64, 48, (64, 48), 0, 0, (64, 48)) and made.crop.cut == 0
    assert make_smaller(saved(photograph(64, 48), "JPEG", exif=exif(3)), ANY, size=(64, 48)).data is not None
    thin = Crop.of(1, 9000, (512, 512))
    assert thin.resized == (512, 4_608_000) and thin.cut == pytest.approx(1 - 1 / 9000)


# ---- tars


SIZES = [(160, 120), (120, 160), (100, 99), (64, 40), (200, 90)]


def key_of(number: int) -> str:
    return f"{number:05d}"


@pytest.fixture
def data(tmp_path):
    for shard in range(2):
        members = []
        for number in range(shard * 10, shard * 10 + 10):
            key, file = key_of(number), io.BytesIO()
            Image.new("RGB", SIZES[number % 5], colour_of(key)).save(file, "PNG")
            members += [(f"{key}.png", file.getvalue()), (f"{key}.txt", key.encode())]
            members += [(f"{key}.json", b'{"a": 1}')] * (number % 2)
        members[0] = ("00000.png", b"no image") if not shard else members[0]
        write_tar(tmp_path / f"data/{shard:05d}.tar", members)
    return tmp_path / "data"


def samples_in(folder: Path) -> dict[str, dict[str, bytes]]:
    """By path below a folder, as ``64x48/00000.tar/key``: members by suffix."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                name = f"{path.relative_to(folder)}/{key}"
                found.setdefault(name, {})[suffix] = tar.extractfile(member).read()
    return found


def test_masks_that_are_not_cropped_with_their_image_are_counted(tmp_path):
    image, mask = saved(photograph(128, 96), "JPEG"), saved(Image.new("L", (128, 96)), "PNG")
    (tmp_path / "masked").mkdir()
    write_tar(tmp_path / "masked/00000.tar", [("000.jpg", image), ("000.seg.png", mask), ("001.jpg", image)])
    dataset = ImageStatistics(["width", "height"])(ImageTextPairDataset.from_webdataset(tmp_path / "masked"))
    how = {"bucket_size": "bucket", "image_member": "jpg"}
    summary = AspectBuckets(64, step=32)(dataset).to_webdataset(tmp_path / "out", **how)
    assert (summary.crops.images, summary.crops.beside) == (2, 1)
    assert "WARNING: 1 sample has other images, which were not cropped" in str(summary)


def test_tars_of_one_shape(data, tmp_path):
    dataset = ImageTextPairDataset.from_webdataset(data)
    with pytest.raises(DatasetError, match=r"no columns \['width', 'height'\] of pixels.*--statistics"):
        AspectBuckets(96, step=32)(dataset)
    dataset = AspectBuckets(96, step=32, upscale=False)(ImageStatistics(["width", "height"])(dataset))
    how = {"by": "bucket", "bucket_size": "bucket", "samples_per_shard": 3, "shuffle": 1}
    summary = dataset.to_webdataset(tmp_path / "out", **how, card=True)
    # The one that is no image, and those that are too small, have no bucket.
    assert (summary.rows, summary.kept, summary.filtered, summary.missing) == (20, 15, 5, 0)
    sizes = AspectBuckets(96, step=32).sizes[0]
    found = samples_in(tmp_path / "out")
    assert {name.rpartition("/")[2] for name in found} == {key_of(n) for n in range(1, 20) if n % 5 != 3}
    for name, members in found.items():
        bucket, tar, key = name.split("/")
        image, size = opened(members["png"]), tuple(map(int, bucket.split("x")))
        assert image.size == size and size in sizes and image.getpixel((0, 0)) == colour_of(key)
        own = SIZES[int(key) % 5]
        _, left, top = by_hand(Image.new("RGB", own), size)
        told = json.loads(members["json"])
        assert told.pop("a", 1) == 1 and members["txt"] == key.encode()
        assert [*told.values()] == [*own, top, left]
        table = pq.read_table(tmp_path / "out" / bucket / tar.replace(".tar", ".parquet")).to_pylist()
        (row,) = [row for row in table if row["key"] == key]
        assert {each: row[each] for each in told} == told
        assert (row["exported_width"], row["exported_height"], row["width"]) == (*size, own[0])
    assert summary.crops.images == 15 and summary.crops.enlarged == 0
    assert "15 images have the size of the bucket: cropping cut off" in str(summary)
    card = (tmp_path / "out/README.md").read_text()
    assert (
        "15 images were resized and cropped to the size in `bucket`, but those that had it; what was" in card
    )
    assert "made smaller" not in card  # and all others were not "byte for byte"
    assert "pixels that were cropped off" in card
    again = dataset.to_webdataset(tmp_path / "out", **how, card=True)
    assert (again.written, again.skipped) == (0, summary.shards)
    assert vars(again.crops) == pytest.approx(vars(summary.crops))
    with pytest.raises(OutputError, match="made of other samples, or by other settings"):
        dataset.to_webdataset(tmp_path / "out", **{**how, "bucket_size": None})
    check_cropped_again(tmp_path)


def check_cropped_again(tmp_path):
    """JSON and columns say of images cropped for the second time what they were before that."""
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "out")
    dataset = AspectBuckets(["32x32"], width="exported_width", height="exported_height", column="small")(
        dataset
    )
    for metadata in ("parquet", "json"):
        how = {"image_format": "webp", "quality": 80, "image_member": "png", "strip_metadata": "all"}
        out = tmp_path / metadata
        summary = dataset.to_webdataset(out, bucket_size="small", metadata=metadata, **how)
        assert summary.kept == 15
        before = {name.rpartition("/")[2]: each for name, each in samples_in(tmp_path / "out").items()}
        for name, members in samples_in(out).items():
            image, told = opened(members["webp"]), json.loads(members["json"])
            was = opened(before[name.rpartition("/")[2]]["png"])
            _, left, top = by_hand(was, (32, 32))
            assert (image.format, image.size) == ("WEBP", (32, 32))
            said = ("original_width", "original_height", "crop_top", "crop_left")
            assert [told[f"exported_{each}"] for each in said] == [*was.size, top, left]


def test_what_cannot_be_cropped_is_left_out(data, tmp_path):
    """A batch must stack: such an image is not copied, as it is where large ones are made smaller."""
    frames = [photograph(60, 40), photograph(60, 40).rotate(180)]
    animated = io.BytesIO()
    frames[0].save(animated, "WEBP", save_all=True, append_images=frames[1:])
    members = [("a.webp", animated.getvalue()), ("b.png", saved(photograph(), "PNG")[:900])]
    members += [
        ("c.txt", b"none"),
        ("d.png", saved(photograph(), "PNG")),
        ("e.png", saved(photograph(), "PNG")),
    ]
    write_tar(tmp_path / "odd/00000.tar", members)
    bucket = ["64x64", "64x64", "64x64", "64 by 64", "64x64"]
    pq.write_table(pa.table({"key": list("abcde"), "bucket": bucket}), tmp_path / "odd/00000.parquet")
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "odd")
    for form in ("webdataset", "parquet"):
        summary = dataset.to_webdataset(tmp_path / form, bucket_size="bucket", format=form)
        assert (summary.kept, summary.missing) == (1, 4)
        kinds = ("animated", "truncated", "missing", "size")
        assert summary.reasons == {f"not cropped ({kind})": 1 for kind in kinds}
        assert "'64 by 64': expected width and height" in str(summary)
    grown = dataset.to_webdataset(tmp_path / "webdataset", bucket_size="bucket", append=True)
    assert (grown.kept, grown.earlier, grown.missing, grown.reasons) == (0, 1, 4, summary.reasons)
    # A size that is mended is seen.
    mended = pa.table({"key": list("abcde"), "bucket": ["64x64"] * 5})
    pq.write_table(mended, tmp_path / "odd/00000.parquet")
    grown = ImageTextPairDataset.from_webdataset(tmp_path / "odd").to_webdataset(
        tmp_path / "webdataset", bucket_size="bucket", append=True
    )
    assert (grown.kept, grown.earlier, grown.missing) == (1, 1, 3)
    table = pq.read_table(tmp_path / "parquet/data")
    assert opened(table["image"][0].as_py()["bytes"]).size == (64, 64)
    assert table["exported_crop_left"].to_pylist() == [10]  # 240 x 180 is resized to 85 x 64
    for options, said in (
        ({"max_side": 3}, "a bucket is a size"),
        ({"bucket_size": "buckt"}, "no such columns .'buckt'"),
        ({"columns": ["exported_crop_top"]}, "no such columns"),
    ):
        with pytest.raises(ConfigError, match=said):
            dataset.to_webdataset(tmp_path / "no", **{"bucket_size": "bucket", **options})
    assert not (tmp_path / "no").exists()


def test_the_commands(data, tmp_path, client):
    at = ["--scheduler-address", client.scheduler.address]
    ImageStatistics(["phash"])(ImageTextPairDataset.from_webdataset(data)).save_metadata(tmp_path / "rows")
    run = CliRunner().invoke
    bucket = ["score", str(tmp_path / "rows"), "--bucket", "96", "--bucket-step", "32", *at]
    done = run(app, bucket)
    assert done.exit_code != 0 and "--statistics" in done.output
    measured = [str(tmp_path / "more"), "--statistics", "width,height", "--prefix", "image_"]
    done = run(app, [*bucket[:2], *measured, *bucket[2:]])
    assert done.exit_code == 0, done.output
    by_prefix = pq.read_table(tmp_path / "more")["bucket"]
    done = run(app, [*bucket, "--statistics", "width,height"])
    assert done.exit_code == 0, done.output
    table = pq.read_table(tmp_path / "rows")
    known = AspectBuckets(96, step=32).step()
    sizes = [table[name].cast("float64").to_numpy() for name in ("width", "height")]
    assert table["bucket"].to_pylist() == known.names_of(*sizes).to_pylist()
    assert table["bucket"].to_pylist() == by_prefix.to_pylist()
    again = run(app, [*bucket, "--statistics", "width,height"])
    assert again.exit_code == 0 and "nothing to do, 2 files" in again.output, again.output
    other = run(app, [*bucket, "--bucket-ratio", "1.5"])
    assert other.exit_code == 2 and "aspect buckets" in other.output, other.output
    told = run(app, ["info", str(tmp_path / "rows")])
    assert "aspect buckets, " in told.output, told.output
    done = run(
        app,
        [
            "export",
            str(tmp_path / "rows"),
            str(tmp_path / "out"),
            "--by",
            "bucket",
            "--bucket-size",
            "bucket",
            *at,
        ],
    )
    assert done.exit_code == 0, done.output
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.tar")} == {
        *table["bucket"].to_pylist()
    } - {None}


def test_the_recipe(data, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "statistics: [width, height]\nprefix: image_\nbuckets: {resolution: 96, step: 32}\nwhere: image_width > 150\n"
        "export: {by: bucket, bucket_size: bucket}\n"
    )
    summary = curate(data, tmp_path / "out", Recipe.read(tmp_path / "recipe.yaml"))
    assert (summary.rows, summary.failed, summary.kept) == (20, 1, 7) and summary.complete
    found = {path.parent.name for path in (tmp_path / "out").rglob("*.tar")}
    table = pq.read_table(tmp_path / "out/embeddings", columns=["image_width", "bucket"]).to_pylist()
    assert found == {row["bucket"] for row in table if (row["image_width"] or 0) > 150}
    own = Recipe(statistics=["all"], prefix="a_", buckets={"resolution": 96, "step": 32, "height": "mine"})
    assert (own.bucketed().width, own.bucketed().height) == ("a_width", "mine")
    assert Recipe(statistics=["phash"], prefix="a_", buckets={}).bucketed().width == "width"
    for export, said in (
        ({"by": "buckt"}, "by='buckt'|by: there is no column 'buckt'"),
        ({"bucket_size": "b"}, "bucket_size"),
    ):
        with pytest.raises(ConfigError, match=said):
            curate(data, tmp_path / "no", Recipe(statistics=["width"], export=export))
    with pytest.raises(ConfigError, match="resolution=1000"):
        Recipe(buckets={"resolution": 1000})


def test_sizes_of_images_that_their_rows_turn_are_refused(tmp_path):
    """As an export crops them as their files lie, the sizes would be of images that lie otherwise."""
    write_dataset(tmp_path / "data", 1, 3)
    for path in (tmp_path / "data").glob("*.parquet"):
        table = pq.read_table(path)
        turned = pa.array(['{"Image Orientation": "Rotated 90 CW"}'] * len(table))
        pq.write_table(table.append_column("exif", turned), path)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    options = {"metadata": None, "bucket_size": "bucket"}
    for orientation in ("exif-column", "stored"):
        measured = ImageStatistics(["width", "height"], prefix="image_", orientation=orientation)(dataset)
        sides = {"width": "image_width", "height": "image_height"}
        sized = AspectBuckets(64, step=16, **sides)(measured)
        if orientation == "stored":
            assert sized.to_webdataset(tmp_path / "out", **options).kept == 3
            continue
        with pytest.raises(ConfigError, match=r"'image_width', which was measured with --orientation exif"):
            sized.to_webdataset(tmp_path / "out", **options)
        sized.save_metadata(tmp_path / "rows")
        with pytest.raises(ConfigError, match=r"images are cropped as their files lie\. Measure width"):
            export_output(tmp_path / "rows", tmp_path / "out", ExportOptions(**options))
        assert not (tmp_path / "out").exists()


def test_format_quality_and_image_are_taken_with_buckets_alone():
    given = {"image_format": "jpeg", "quality": 80, "image_member": "image.png"}
    options = ExportOptions(bucket_size="bucket", **given)
    shrinking = options.shrinking
    assert shrinking is not None and shrinking.how.image_format == "jpeg" and shrinking.how.quality == 80
    with pytest.raises(ConfigError, match="or cropped: bucket_size"):
        ExportOptions(**given)
