"""Files of an output that are damaged, or are no files: every command names them with what to do, and keeps them."""

from __future__ import annotations

import os
import shutil
from functools import partial

import dask
import pyarrow.parquet as pq
import pytest
import torch
from colours import ColourReader, write_dataset
from test_cli import run_here
from test_heads import red_head

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.dedup import SemanticDeduplication
from curator_dask.errors import OutputError
from curator_dask.image.classifiers import HeadClassifier, score_output
from curator_dask.image.embedders import TimmImageEmbedder
from curator_dask.outputs.filtering import filter_output

pytestmark = pytest.mark.usefixtures("in_this_process")

REMEDY = "Put the whole file in its place, or remove it and run again what made it"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two shards, and what ``embed``, ``dedup`` and ``filter`` have made of them."""
    folder = tmp_path_factory.mktemp("damaged")
    write_dataset(folder / "data", 2, 6, parquet=False)
    with dask.config.set(scheduler="sync"):
        model = TimmImageEmbedder("test_vit", pretrained=False, batch_size=4)
        model(ImageTextPairDataset.from_webdataset(folder / "data")).save_metadata(folder / "out")
        SemanticDeduplication(0.05)(folder / "out").save(folder / "twins")
        filter_output(folder / "out", folder / "some", where="score>0")
        torch.save({"weight": torch.eye(64)[[0]], "bias": torch.zeros(1)}, folder / "red.pth")
        score_output(folder / "out", [HeadClassifier(folder / "red.pth", "red")], folder / "scored")
    return folder


@pytest.fixture
def place(made, tmp_path):
    """The same, to be damaged."""
    for name in ("out", "twins", "some", "scored"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


#: What each command is given, and which file is cut; the folders that are named are those of `place`.
COMMANDS = {
    "retry": ("retry out", "out/00001.parquet"),
    "score": ("score out --head red=HEAD", "out/00001.parquet"),
    "score elsewhere": ("score out scored --head red=HEAD", "scored/00001.parquet"),
    "filter": ("filter out new --where width>0", "out/00001.parquet"),
    "filter elsewhere": ("filter out some --where score>0", "some/00001.parquet"),
    "dedup": ("dedup out new", "out/00001.parquet"),
    "dedup against": ("dedup some new --against out", "out/00001.parquet"),
    "export": ("export out new", "out/00001.parquet"),
    "export without": ("export out new --without twins", "twins/duplicates.parquet"),
    "search": ("search out --like 000000001", "out/00001.parquet"),
    "report": ("report out new.html", "out/00001.parquet"),
    "report of twins": ("report out new.html --duplicates twins", "twins/duplicates.parquet"),
}


def cuts(path):
    whole = path.read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        yield whole[:size]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_cut_short_is_named_before_a_cluster_starts(made, place, monkeypatch, command):
    arguments, name = COMMANDS[command]
    words = arguments.replace("HEAD", str(made / "red.pth")).split()
    path = place / name
    monkeypatch.chdir(place)
    monkeypatch.setattr("curator_dask.cluster.client.get_client", None)
    for cut in cuts(path):
        done = run_here(*words)
        said = " ".join(done.stderr.split())
        assert done.returncode == 2 and f"{path}: " in said and REMEDY in said, (len(cut), said)
        assert path.read_bytes() == cut and not (place / "new").exists()


def model():
    return TimmImageEmbedder("test_vit", pretrained=False, batch_size=4)


def test_embed_keeps_a_damaged_file_unless_it_may_be_replaced(made, place):
    """It may be a copy that is still under way."""
    dataset, path = ImageTextPairDataset.from_webdataset(made / "data"), place / "out" / "00001.parquet"
    for cut in cuts(path):
        with pytest.raises(OutputError, match=rf"00001\.parquet: is damaged.*{REMEDY}.*--overwrite"):
            model()(dataset).save_metadata(place / "out")
        assert path.read_bytes() == cut
    summary = model()(dataset).save_metadata(place / "out", overwrite=True)
    assert (summary.written, summary.skipped) == (1, 1)
    assert pq.read_table(path).equals(pq.read_table(made / "out" / "00001.parquet"))


def test_dedup_names_damaged_vectors_and_a_damaged_result(made, place):
    find, vectors, result = SemanticDeduplication(0.05), place / "out", place / "twins" / "duplicates.parquet"
    against = SemanticDeduplication(0.05, against=place / "out")
    for _ in cuts(result):
        with pytest.raises(OutputError, match=rf"duplicates\.parquet: is damaged.*{REMEDY}"):
            find(made / "out").save(place / "twins")
    result.unlink()
    find(made / "out").save(place / "twins")
    assert pq.read_table(result).equals(pq.read_table(made / "twins" / "duplicates.parquet"))
    shutil.copy(result, vectors / "00001.parquet")
    next(cuts(vectors / "00001.parquet"))
    for save in (find(vectors).save, against(made / "out").save):
        with pytest.raises(OutputError, match=rf"00001\.parquet: is damaged.*{REMEDY}"):
            save(place / "new")
        assert not (place / "new").exists()


NO_FILES = {
    "a FIFO": (os.mkfifo, "is no file: expected a regular file, found a FIFO"),
    "a link": (lambda path: path.symlink_to("gone"), "is a link to gone, which is not there"),
    "a pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "is a Git LFS pointer, no Parquet file: fetch the file itself with git lfs pull",
    ),
    "a page": (lambda path: path.write_text("<html>" * 9), "is damaged, or no Parquet file at all"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_called_what_it_is(made, place, kind):
    put, said = NO_FILES[kind]
    paths = [place / name / "00001.parquet" for name in ("out", "some")]
    for path in paths:
        path.unlink()
        put(path)
    dataset = ImageTextPairDataset.from_webdataset(made / "data")
    for command in (
        partial(model()(dataset).save_metadata, place / "out"),
        partial(filter_output, place / "out", where="width > 0"),
        partial(filter_output, made / "out", place / "some", where="score>0"),
    ):
        with pytest.raises(OutputError, match=rf"00001\.parquet: .*{said}"):
            command()
    assert all(path.is_symlink() or path.exists() for path in paths)


def test_damaged_pages_under_a_whole_footer(made, place, monkeypatch):
    """What commands read when their workers are there fails as a shard does: exit code 1."""
    monkeypatch.chdir(place)
    path = place / "out" / "00001.parquet"
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    for words in ("search out --like 000000001", "filter out --where width>0", "report out new.html"):
        done = run_here(*words.split())
        assert done.returncode in (1, 2), done.stdout
        assert f"{path}: is damaged" in " ".join(done.stderr.split()), done.stderr


@pytest.mark.parametrize("damaged", [True, False])
def test_the_datasets_own_parquet_is_not_said_to_be_made_again(tmp_path, damaged):
    """Nobody can: its shard fails, the others are done. Nor is it replaced by rows from the tar."""
    write_dataset(tmp_path, 2, 3)
    own = tmp_path / "00001.parquet"
    before = next(cuts(own)) if damaged else own.read_bytes()
    if damaged:
        summary = ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path)).save_metadata()
        assert summary.written == 1 and "Restore it" in summary.failed_shards["00001"]
    from_tars = ImageTextPairDataset.from_webdataset(tmp_path, metadata="tar")
    with pytest.raises(OutputError, match=r"0000[01]\.parquet: (is damaged|was not written by curator_dask)"):
        ColourReader()(from_tars).save_metadata()
    assert own.read_bytes() == before


def test_what_is_refused_leaves_no_folder(made, tmp_path):
    heads = [HeadClassifier(red_head(made / "data"), "red")]  # of three values
    for refused in (
        partial(filter_output, made / "out", tmp_path / "a" / "new", where="nothing > 0"),
        partial(score_output, made / "out", heads, tmp_path / "new"),
        partial(score_output, tmp_path / "nowhere", heads),
        partial(SemanticDeduplication(0.05, embedding_column="no")(made / "out").save, tmp_path / "new"),
    ):
        with pytest.raises(Exception, match=r"no column|no Parquet file|expected vectors of"):
            refused()
        assert not [*tmp_path.iterdir()]
