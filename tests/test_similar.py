"""Search by an image: the ranking is NumPy's, whether the image is one of the output or a file."""

from __future__ import annotations

import io
import tempfile
import uuid

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
from colours import image_of, write_tar
from PIL import Image
from test_cli import run_here

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.columns import list_to_matrix
from curator_dask.image.embedders import TimmImageEmbedder
from curator_dask.image.embedders.similar import similar_to_image, similar_to_key


def png(number):
    image = Image.fromarray(skimage.data.chelsea()).rotate(25 * number).resize((60, 40))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures():
    """By shard and key. The key "same" is in two shards, "bad" is no image."""
    found = {("a", f"1{number}"): png(number) for number in range(4)} | {("a", "same"): png(4)}
    found |= {("b", f"2{number}"): png(5 + number) for number in range(3)} | {("b", "same"): image_of("77")}
    return found | {("b", "bad"): b"no image"}


@pytest.fixture(scope="module")
def out(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("similar")
    for shard in "ab":
        members = [(f"{key}.png", data) for (of, key), data in pictures.items() if of == shard]
        write_tar(folder / "data" / f"{shard}.tar", members)
    embedder = TimmImageEmbedder("test_vit", pretrained=False, batch_size=4, image_embedding_column="seen")
    with dask.config.set(scheduler="sync"):
        embedder(ImageTextPairDataset.from_webdataset(folder / "data")).save_metadata(folder / "out")
    return folder / "out"


def ranking(out, key, shard):
    """Names of shards and keys with their cosines, the highest first, by plain NumPy."""
    table = pq.read_table(out)
    vectors, valid = list_to_matrix(table.column("seen"))
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    names = [
        (url[-5], key)
        for url, key in zip(*(table.column(n).to_pylist() for n in ("__url__", "key")), strict=True)
    ]
    cosines = vectors @ vectors[names.index((shard, key))]
    return [(*names[row], float(cosines[row])) for row in np.argsort(-cosines, kind="stable") if valid[row]]


def named(hits):
    return [(hit.url[-5], hit.key) for hit in hits]


def test_like_one_of_the_output(out, pictures):
    for shard, key in pictures:
        if key != "bad":
            others = [each for each in ranking(out, key, shard) if each[:2] != (shard, key)]
            hits = similar_to_key(out, key, shard=f"/{shard}.tar", column="seen")
            assert named(hits) == [each[:2] for each in others] and len(hits) == len(pictures) - 2
            assert [hit.score for hit in hits] == pytest.approx([cosine for *_, cosine in others], abs=1e-6)
    assert named(similar_to_key(out, "11", top=2, column="seen")) == [
        each[:2] for each in ranking(out, "11", "a")[1:3]
    ]


def test_copies_of_an_image_are_like_it_and_itself_is_left_out(tmp_path):
    """Also where more copies stand before it than are asked for."""
    vectors = [[1.0, 0.0]] * 5 + [[0.0, 1.0]]
    out = write_foreign(tmp_path / "out", key=list("abcdef"), seen=vectors)
    for key, found in (("a", "bc"), ("b", "ac"), ("e", "ab")):
        assert "".join(hit.key for hit in similar_to_key(out, key, top=2, column="seen")) == found
    assert [hit.key for hit in similar_to_key(out, "c", column="seen")] == list("abdef")


def test_like_an_image_in_a_file(out, pictures, tmp_path):
    """The vector is that of the same bytes in a tar."""
    for shard, key in (("a", "12"), ("b", "same")):
        (tmp_path / "query").write_bytes(pictures[shard, key])
        own = ranking(out, key, shard)
        hits = similar_to_image(out, tmp_path / "query", column="seen")
        assert named(hits) == [each[:2] for each in own]
        assert [hit.score for hit in hits] == pytest.approx([cosine for *_, cosine in own], abs=1e-5)
    other = TimmImageEmbedder("test_resnet", pretrained=False)
    with pytest.raises(ConfigError, match=r"'seen' was made with model .*Expected one model for both"):
        similar_to_image(out, tmp_path / "query", other, column="seen")
    table = pq.read_table(out / "a.parquet").replace_schema_metadata(None)
    (tmp_path / "bare").mkdir()
    pq.write_table(table, tmp_path / "bare" / "a.parquet")
    with pytest.raises(OutputError, match="does not say which model made 'seen'"):
        similar_to_image(tmp_path / "bare", tmp_path / "query", column="seen")
    assert len(similar_to_key(tmp_path / "bare", "12", column="seen")) == 4


def test_on_the_command_line(out, pictures, tmp_path):
    (tmp_path / "query.png").write_bytes(pictures["a", "12"])
    (tmp_path / "no.jpg").write_bytes(b"no image")
    arguments = ["search", out, "--column", "seen"]
    own = [key for _, key, _ in ranking(out, "12", "a")]
    for like in (["--like", "12"], ["--image", tmp_path / "query.png"]):
        done = run_here(*arguments, *like, "--top", 3, "--sheet", tmp_path / "found.png")
        assert done.returncode == 0, done.stderr
        expected = own[1:4] if like[0] == "--like" else own[:3]
        assert [line.split("\t")[1] for line in done.stdout.splitlines()] == expected
        with Image.open(tmp_path / "found.png") as sheet:
            assert sheet.getpixel((132, 172)) != (236, 238, 241)
    for like, said in (
        ([], "expected one of TEXT, --like, --image"),
        (["a cat"], "expected TEXT and --model together"),
        (["--like", "12", "--model", "m"], "expected TEXT and --model together"),
        (["--like", "12", "--image", tmp_path / "no.jpg"], "expected one of"),
        (["--image", tmp_path / "no.jpg", "--shard", "a"], "--shard is that of --like"),
        (["--like", "99"], "no row has the key '99', in 2 files"),
        (["--like", "12", "--shard", "b.tar"], "no row has the key '12' and 'b.tar' in the URL"),
        (["--like", "same"], "2 rows have the key 'same': say which"),
        (["--like", "bad"], "has no vector in 'seen'"),
        (["--image", tmp_path / "no.jpg"], "no.jpg: not an image"),
        (["--image", tmp_path / "nowhere.jpg"], "there is no such file"),
    ):
        done = run_here(*arguments, *like)
        assert done.returncode == 2 and said in " ".join(done.stderr.split()), (like, done.stderr)


UUID = uuid.UUID("6fa459ea-ee8a-3ca4-894e-db77e160355e")
#: Keys of other programs, and how they are asked for.
KEYS = {
    "bytes": (pa.array([b"a", b"b\xff", b"c"]), "a"),
    "UUIDs in bytes": (pa.array([UUID.bytes, b"b" * 16, None], pa.binary(16)), str(UUID)),
    "a dictionary": (pa.array(["a", "b", "c"]).dictionary_encode(), "a"),
    "large text": (pa.array(["a", "b", "c"], pa.large_string()), "a"),
    "floats": (pa.array([1.0, 2.0, float("nan")]), "1"),
    "dates": (pa.array([0, 1, 2], pa.date32()), "1970-01-01"),
}
#: Vectors that no float32 norm holds, and plain ones.
SCALES = {"plain": 1.0, "huge": 1e38, "tiny": 1e-30}


def write_foreign(folder, **columns):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "0.parquet")
    return folder


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("scale", SCALES)
def test_files_of_other_programs(tmp_path, keys, scale):
    column, like = KEYS[keys]
    vectors = (np.array([[1, 0], [0, 1], [0.6, 0.8]]) * SCALES[scale]).astype(np.float32)
    folder = write_foreign(tmp_path / "out", key=column, seen=pa.array([*vectors], pa.list_(pa.float32())))
    hits = similar_to_key(folder, like, column="seen")
    assert [hit.key for hit in hits] == column.take([2, 1]).to_pylist() or keys == "floats"
    assert [hit.score for hit in hits] == pytest.approx([0.6, 0], abs=1e-6)
    done = run_here("search", folder, "--column", "seen", "--like", like)
    assert done.stdout.splitlines()[0] == f"0.6000\t{hits[0].name}"


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"key": [["a"], ["b"]]}, "'key': expected keys as text, bytes, .* found list"),
        ({"key": [{"a": 1}, {"a": 2}]}, "'key': expected keys as text, bytes, .* found struct"),
        ({"__url__": [1, 2]}, "'__url__': expected text, the shard of each row, found int64"),
        ({"seen": [[{"a": 1.0}], [{"a": 2.0}]]}, "'seen': expected vectors, found list<.*struct"),
        ({"seen": [["x"], ["y"]]}, "'seen': expected vectors, found list<.*string"),
    ],
)
def test_columns_that_cannot_be_searched(tmp_path, columns, said):
    whole = {"key": ["a", "b"], "seen": [[1.0], [2.0]], **columns}
    with pytest.raises(OutputError, match=rf"0\.parquet: {said}"):
        similar_to_key(write_foreign(tmp_path / "out", **whole), "a", column="seen")


def test_an_image_that_cannot_be_copied(out, pictures, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="File name too long"):
        similar_to_image(out, tmp_path / ("x" * 300), column="seen")
    (tmp_path / "query").write_bytes(pictures["a", "12"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"query: cannot be copied into a temporary folder.*TMPDIR"):
        similar_to_image(out, tmp_path / "query", column="seen")
