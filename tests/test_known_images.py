"""Lists of perceptual hashes: PDQ is its reference's, and all within the bits is found, as brute force has it."""

from __future__ import annotations

import io
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
from colours import write_tar
from PIL import Image
from test_cli import run_here

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError, OutputError
from curator_dask.image.statistics import STATISTICS, ImageStatistics
from curator_dask.image.statistics.pdq import pdq_of
from curator_dask.rows.near_lookup import NearLookup, hash_words
from curator_dask.tables import TableColumns, join_output

pytestmark = pytest.mark.usefixtures("in_this_process")

A, C, H, R = (getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket"))
#: Hash and quality by pdqhash 0.2.8, which is built of the algorithm's authors' own program.
REFERENCE = (
    (A, "2d6b1af3a956c529e79ca3d2526fa834d4196c81cedd04de0a26b855fc99b724", 100),
    (C, "8c629e779a663698b9a33866c026726c21a679f61eb6e1f8c79ba7e23c8299e0", 100),
    (H, "5feb5321f01da156898e2bf629a5d3438412cdbd23f48942464526315db33ffd", 100),
    (R, "8792786c87937064bf1bc0e43f1fc0e03f1cc2e33da4c2537cec821b2ce4f376", 100),
    (A[:375, :500], "3c61eb94f19aca97850938f69571678da7de2877d41866a906de0826fc59d7a0", 100),
    (C[::2, ::2], "8c629e769a66369cf9839866c026726c21a679f61eb6e1f8c79ba7f23c0299e0", 100),
    (H[:64, :64], "12b052d6ddb6a0d55a564aaaeaa5a5496ada44e46b76dba99b61697a65b464c4", 44),
    (H[:5, :300], "da6874da249519a56d5355ca6953aa3592acae72db6874da249559a56d5355ca", 100),
    (R[:100, :65], "ca92d55474b6a5265253a2b44a559556d2a9ad6a4949ab554a9bdb55a6d36da5", 90),
    (A[:4], "0" * 64, 0),
)


@pytest.mark.parametrize(("pixels", "digits", "quality"), REFERENCE, ids=range(len(REFERENCE)))
def test_pdq_is_its_references(pixels, digits, quality):
    bits, found = pdq_of(pixels)
    assert (bits.tobytes().hex(), found) == (digits, quality)


def texts_of(words):
    return pa.array([row.astype(">u8").tobytes().hex() for row in words], pa.string())


def changed(words, bits, random):
    """Hashes, each with so many of its bits turned over."""
    words = words.copy()
    for row, number in enumerate(bits):
        for bit in random.choice(64 * words.shape[1], number, replace=False):
            words[row, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return words


@pytest.mark.parametrize(
    ("count", "width", "within"),
    [(100, 4, 31), (4000, 4, 31), (4000, 4, 15), (4000, 4, 64), (4000, 1, 8), (4000, 1, 0), (2500, 1, 10)],
)
def test_all_that_is_near_is_found(count, width, within):
    """Among them hashes that much of the list begins with, and that are in it twice."""
    random = np.random.default_rng(count + width + within)
    listed = random.integers(0, 2**64, (count, width), dtype=np.uint64)
    listed[: count // 3, 0] = 7
    listed[-5:] = listed[:5]
    asked = changed(listed[random.integers(0, count, 200)], random.integers(0, within + 4, 200), random)
    asked = np.concatenate([asked, random.integers(0, 2**64, (50, width), dtype=np.uint64)])
    rows, bits = NearLookup(texts_of(listed), within).find(texts_of(asked))
    apart = np.bitwise_count(asked[:, None] ^ listed).sum(axis=2)
    best = apart.min(axis=1)
    assert 0 < (best <= within).sum() < len(asked)
    np.testing.assert_array_equal(rows, np.where(best <= within, apart.argmin(axis=1), -1))
    np.testing.assert_array_equal(bits, np.where(best <= within, best, 0))
    if width == 1:  # the same as whole numbers, of which databases may have negative ones
        for numbers in (asked.reshape(-1), asked.reshape(-1).view(np.int64)):
            np.testing.assert_array_equal(
                NearLookup(texts_of(listed), within).find(pa.array(numbers))[0], rows
            )


def test_lists_of_one_value_cost_no_more_than_others():
    """Flat images have one hash: a list with very many of them is not compared with each row of it."""
    random = np.random.default_rng(0)
    listed = np.zeros((100_000, 4), np.uint64)
    listed[60_000:] = random.integers(0, 2**64, (40_000, 4), dtype=np.uint64)
    listed[50_000:60_000, 0] = random.permutation(10_000)  # of which three of four words are the same
    asked = changed(listed[-500:], [3] * 500, random)
    asked[:250] = listed[50_000:50_250]
    lookup, started = NearLookup(texts_of(listed), 31), time.process_time()
    rows, bits = lookup.find(texts_of(np.concatenate([np.zeros((4000, 4), np.uint64), asked])))
    assert time.process_time() - started < 10  # by pairs minutes
    assert not rows[:4000].any() and not bits[:4000].any()
    best = [np.bitwise_count(each ^ listed).sum(axis=1).argmin() for each in asked[::50]]
    assert rows[4000::50].tolist() == best
    assert lookup.firsts[49_999] == 0 and np.count_nonzero(lookup.firsts == 0) >= 50_000


def test_what_is_no_hash():
    words, valid = hash_words(pa.array(["F" * 16, None, "", "0" * 15 + "1"]), "it")
    assert words.reshape(-1).tolist() == [2**64 - 1, 0, 0, 1] and valid.tolist() == [True, False, False, True]
    for texts, said in (
        (
            ["0" * 16, "xyz"],
            r"it has no hash in row 1 \(from 0\): expected 16 or 64 hexadecimal digits, found 'xyz'",
        ),
        (["0" * 16, "0" * 64], "it has hashes of several lengths, 16 and 64 digits"),
    ):
        with pytest.raises(ValueError, match=said):
            hash_words(pa.array(texts), "it")
    with pytest.raises(ValueError, match="the rows have hashes of 64 bits, the list of 256"):
        NearLookup(pa.array(["0" * 64]), 31).find(pa.array([1, 2], pa.uint64()))


def written(picture, form="PNG", **options):
    data = io.BytesIO()
    picture.save(data, form, **options)
    return data.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Photographs, some of which the list below knows in another form; one is plain, and one is no image."""
    folder = tmp_path_factory.mktemp("known") / "data"
    a, c, h, r = map(Image.fromarray, (A, C, H, R))
    pictures = {
        "0000": written(a.resize((300, 300)), "JPEG", quality=60),
        "0001": written(c),
        "0002": written(h.resize((200, 133)), "WEBP", quality=70),
        "0003": written(r),
        "0004": written(Image.new("RGB", (60, 60), "grey")),
        "0005": b"no image",
    }
    for shard in range(2):
        members = [(f"{key}.jpg", pictures[key]) for key in list(pictures)[3 * shard :][:3]]
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


@pytest.fixture
def out(dataset, tmp_path):
    measure = ImageStatistics(["pdq", "pdq_quality"])
    measure(ImageTextPairDataset.from_webdataset(dataset)).save_metadata(tmp_path / "out")
    return tmp_path / "out"


def rows_of(out):
    return pd.read_parquet(out, dtype_backend="pyarrow").set_index("key")


def test_known_images_are_marked(out, tmp_path):
    assert not {"pdq", "pdq_quality"} & {*STATISTICS}  # an output with all has all as before
    rows = rows_of(out)
    assert rows["pdq"]["0001"] == REFERENCE[1][1] and rows["pdq_quality"].tolist()[:5] == [100] * 4 + [0]
    assert pd.isna(rows["pdq"]["0005"]) and "not an image" in rows["image_error"]["0005"]
    listed = tmp_path / "list.txt"
    listed.write_text(f"{REFERENCE[2][1].upper()}\n{'0' * 63}1\n{REFERENCE[0][1]}\n")
    summary = join_output(out, listed, "pdq", mark="known", within=31)
    assert (summary.found, summary.without, summary.unasked, summary.written) == (2, 4, 1, 2)
    assert "2 rows found in the table within 31 bits, 4 without; 1 row of the table that no row" in str(
        summary
    )
    rows = rows_of(out)
    assert rows["known"].tolist() == [True, False, True, False, False, False]
    for key, number in (("0000", 0), ("0002", 2)):
        apart = int(rows["pdq"][key], 16) ^ int(REFERENCE[number][1], 16)
        assert rows["known_distance"][key] == apart.bit_count() <= 31
    assert rows["known_distance"].isna().tolist() == [False, True, False, True, True, True]
    assert join_output(out, listed, "pdq", mark="known", within=31).skipped == 2
    assert join_output(out, listed, "pdq", mark="known", within=0).written == 2
    assert not rows_of(out)["known"].any()


def test_the_nearest_gives_its_columns(dataset, out, tmp_path):
    """To the dataset in its pass, too."""
    table = pd.DataFrame({"hash": [REFERENCE[3][1], REFERENCE[1][1]], "case": ["rocket", "coffee"]})
    table.to_csv(tmp_path / "cases.csv", index=False)
    adds = TableColumns(tmp_path / "cases.csv", "pdq=hash", ["case"], "known", within=31)
    measured = ImageStatistics(["pdq"])(ImageTextPairDataset.from_webdataset(dataset))
    adds(measured).save_metadata(tmp_path / "marked")
    join_output(out, tmp_path / "cases.csv", "pdq=hash", ["case"], "known", within=31)
    for folder in (out, tmp_path / "marked"):
        rows = rows_of(folder)
        assert rows["case"].fillna("-").tolist() == ["-", "coffee", "-", "rocket", "-", "-"]
        assert rows["known_distance"].fillna(-1).tolist() == [-1, 0, -1, 0, -1, -1]
    assert adds.found_in(tmp_path / "marked").found == 2


def test_what_cannot_be(out, tmp_path):
    for options, said in (
        ({"within": 31}, r"within=31: expected a mark too \(mark, --mark\)"),
        ({"within": 65, "mark": "m"}, "within=65: expected a number of bits, 0 to 64"),
        ({"within": True, "mark": "m"}, "within=True: expected a number of bits"),
    ):
        with pytest.raises(ConfigError, match=said):
            TableColumns("list.txt", "pdq", **options)
    listed = tmp_path / "list.txt"
    listed.write_text(f"{'0' * 64}\n# a list\n")
    with pytest.raises(
        DatasetError, match=r"list.txt: column 'pdq': the list has no hash in row 1 .*found '# a list'"
    ):
        join_output(out, listed, "pdq", mark="known", within=31)
    listed.write_text("0" * 16)
    with pytest.raises(OutputError, match="the rows have hashes of 256 bits, the list of 64"):
        join_output(out, listed, "pdq", mark="known", within=8)
    assert "known" not in pq.read_schema(next(out.glob("*.parquet"))).names


def test_the_command(out, client, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("f" * 64)
    arguments = ["join", out, listed, "--on", "pdq", "--mark", "known", "--within", "31"]
    done = run_here(*arguments, "--scheduler-address", client.scheduler.address)
    assert done.returncode == 0 and "NONE found: column 'pdq' of the rows has" in done.stdout
    assert rows_of(out)["known"].tolist() == [False] * 6
