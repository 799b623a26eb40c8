"""negCLIPLoss: what brute NumPy gives of the paper's formula, and what the paper claims of it, in planted pairs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.special import logsumexp
from test_heads import L14
from test_text import embedded, pairs, shards, transformers_own  # noqa: F401, fixtures
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.curation import Recipe, curate
from curator_dask.errors import ConfigError, DatasetError, OutputError
from curator_dask.frames.columns import list_to_matrix, unit, vectors_to_list
from curator_dask.frames.parquet import read_record, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers import score_output
from curator_dask.image.classifiers.centroids import find_centroids
from curator_dask.rows.draws import mixed, row_digests
from curator_dask.text import ClipTextEmbedder, NegClipLoss, contrasting
from curator_dask.text.contrast import Batch
from curator_dask.text.contrasting import normalisation

DIM = 12
NO_VECTOR, NO_TEXT, ZEROS = 3, 8, 11  # rows of each file


def made(rows, seed=0):
    """Vectors of images and of texts, not of length 1."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(rows, DIM)) + 1
    return images.astype(np.float32), (images + rng.normal(size=images.shape)).astype(np.float32) * 3


def write(folder, images, texts, sizes, keys=None):
    """Files of so many rows each, which lack vectors in some; the keys with both."""
    keys = [f"{number:04d}" for number in range(len(images))] if keys is None else keys
    start, good = 0, []
    for number, size in enumerate(sizes):
        part = slice(start, start + size)
        at = np.array([int(key) % 16 for key in keys[part]])
        one, other = images[part].copy(), texts[part]
        one[at == ZEROS] = 0
        columns = {
            "key": keys[part],
            "__url__": [f"/data/{int(key) // 100:05d}.tar" for key in keys[part]],
            "image_embedding": vectors_to_list(one, at != NO_VECTOR),
            "text_embedding": vectors_to_list(other, at != NO_TEXT),
        }
        info = {name: {**L14, "dim": DIM} for name in ("image_embedding", "text_embedding")}
        write_table(
            str(folder / f"{number}.parquet"),
            pa.table(columns),
            FileRecord("f", id_col="key", embeddings=info),
        )
        good += [
            key for key, each in zip(keys[part], at, strict=True) if each not in (NO_VECTOR, NO_TEXT, ZEROS)
        ]
        start += size
    return good


def by_key(folder, column="neg_clip_loss"):
    table = pq.read_table(folder, columns=["key", column])
    return dict(zip(*(table[name].to_pylist() for name in ("key", column)), strict=True))


def oracle(images, texts, batches, temperature):
    """The formula row by row in float64; `batches` are lists of rows, and each row is of its batch once."""
    images, texts = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (images, texts))
    found = []
    for row, (image, text) in enumerate(zip(images.astype(float), texts.astype(float), strict=True)):
        terms = []
        for batch in batches:
            inside = sorted({*batch, row})
            of_texts = np.log(np.exp(texts[inside].astype(float) @ image / temperature).sum())
            of_images = np.log(np.exp(images[inside].astype(float) @ text / temperature).sum())
            terms.append(temperature / 2 * (of_texts + of_images))
        found.append(image @ text - np.mean(terms))
    return np.array(found)


@pytest.mark.usefixtures("in_this_process")
def test_it_is_the_formula_whatever_the_files(tmp_path, monkeypatch):
    """Batches of all rows, and such as are drawn; other files in another order give the same."""
    images, texts = made(150)
    good = write(tmp_path / "out", images, texts, (60, 50, 40))
    rows = [int(key) for key in good]
    summary = score_output(tmp_path / "out", [NegClipLoss(temperature=0.07, check=False)])
    assert summary.complete and len([*(tmp_path / "out.contrast").iterdir()]) == 1  # more would be the same
    whole = by_key(tmp_path / "out")
    assert [key for key, value in whole.items() if value is not None] == good
    expected = oracle(images[rows], texts[rows], [range(len(rows))], 0.07)
    np.testing.assert_allclose([whole[key] for key in good], expected, atol=2e-6)
    assert expected.max() < 0
    said = dict(
        zip(
            *(pq.read_table(tmp_path / "out")[name].to_pylist() for name in ("key", "image_error")),
            strict=True,
        )
    )
    assert said["0003"].startswith("no vector") and said["0008"].startswith("no vector")
    assert "no direction" in said["0011"] and said["0000"] is None

    few = NegClipLoss(temperature=0.07, batch_size=20, batches=3, seed=5, check=False, pred_column="few")
    assert score_output(tmp_path / "out", [few]).complete
    read = [pq.read_table(tmp_path / f"out.contrast/{number:03d}.batch") for number in range(3)]
    table = pa.table({"key": good, "__url__": [f"/{int(key) // 100:05d}.tar" for key in good]})
    digests = row_digests(table, "key", 5)
    batches = [np.argsort(mixed(digests, number))[:20] for number in range(3)]
    assert [{*each["digest"].to_pylist()} for each in read] == [{*digests[each].tolist()} for each in batches]
    assert len({*np.concatenate(batches).tolist()}) > 40  # others in each
    expected = oracle(images[rows], texts[rows], batches, 0.07)
    found = by_key(tmp_path / "out", "few")
    np.testing.assert_allclose([found[key] for key in good], expected, atol=2e-6)
    assert score_output(tmp_path / "out", [few]).skipped == 3

    # Of a device that was full at first, what torch keeps for later is given back.
    blocks = contrasting.normalisation, []

    def full(*given):
        blocks[1].append(len(given[0]))
        if len(blocks[1]) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return blocks[0](*given)

    monkeypatch.setattr(contrasting, "normalisation", full)
    again = NegClipLoss(temperature=0.07, batch_size=20, batches=3, seed=5, check=False, pred_column="again")
    assert score_output(tmp_path / "out", [again]).complete and blocks[1][0] == blocks[1][1]
    assert len(blocks[1]) == 1 + 3 * 3
    assert by_key(tmp_path / "out", "again") == found

    order = np.random.default_rng(1).permutation(150)
    write(tmp_path / "other", images[order], texts[order], (20, 130), [f"{row:04d}" for row in order])
    score_output(tmp_path / "other", [few])
    other = by_key(tmp_path / "other", "few")
    assert {key: pytest.approx(value, abs=1e-6) for key, value in found.items()} == other
    with pytest.raises(
        OutputError, match=r"'few' by the head negCLIPLoss \(temperature 0.07.*this run has .*0.01"
    ):
        score_output(tmp_path / "other", [NegClipLoss(batch_size=20, check=False, pred_column="few")])
    # With a row more, the scores of all are made anew.
    images, texts = made(151)
    write(tmp_path / "other", images[150:], texts[150:], (1,), ["0150"])
    assert score_output(tmp_path / "other", [few]).skipped == 0


def test_a_rows_own_pair_counts_once_where_another_has_its_key():
    """In the batch stands one of them; the other takes its place there, for itself."""
    images, texts = (unit(each) for each in made(3))
    batch = Batch(np.array([4, 7], np.uint64), images[:2], texts[:2])
    found = normalisation(images, texts, np.array([4, 7, 7], np.uint64), batch, 0.07)
    expected = []
    for row, some in enumerate(([0, 1], [0, 1], [0, 2])):
        sides = (texts[some] @ images[row], images[some] @ texts[row])
        expected.append(0.07 / 2 * sum(np.log(np.exp(side / 0.07).sum()) for side in sides))
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_no_exponential_is_too_large_or_lost(monkeypatch):
    """Of rows whose own pair fits far worse, or far better, than others; in blocks that do not come out even."""
    monkeypatch.setattr("curator_dask.text.contrasting._CACHED", 7)
    images, texts = (unit(each) for each in made(40))
    texts[::3] *= -1  # their own product is the least of all
    batch = Batch(np.arange(30, dtype=np.uint64), images[:30], texts[:30])
    for temperature in (1e-6, 1e-3, 0.01, 1, 100):
        found = normalisation(images, texts, np.arange(40, dtype=np.uint64), batch, temperature)
        expected = []
        for row in range(40):
            some = sorted({*range(30), row})
            sides = [
                a[some].astype(float) @ b[row].astype(float) for a, b in ((texts, images), (images, texts))
            ]
            expected.append(temperature / 2 * sum(logsumexp(side / temperature) for side in sides))
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.usefixtures("in_this_process")
def test_general_captions_are_below_those_that_say_something(tmp_path):
    """Of pairs with equal cosines: a caption that fits many images has a lower score than one that fits its own."""
    rng, rows = np.random.default_rng(0), 200
    images = unit(rng.normal(size=(rows, 64)).astype(np.float32) + 2)  # all have something in common
    common = unit(images.mean(0, keepdims=True))[0]
    texts = np.empty_like(images)
    for row, image in enumerate(images):
        cosine = image @ common
        away = unit((image - cosine * common)[None])[0]
        noise = rng.normal(size=64).astype(np.float32)
        noise -= (noise @ image) * image
        # The common direction for half of them; else as far from the image, but in a direction of its own.
        texts[row] = (
            common if row % 2 else cosine * image + np.sqrt(1 - cosine**2) * unit((noise + away)[None])[0]
        )
    sizes = (100, 100)
    keys = [str(16 * row) for row in range(rows)]  # none lacks a vector
    write(tmp_path / "out", images, texts, sizes, keys)
    cosines = (images * unit(texts)).sum(1)
    score_output(tmp_path / "out", [NegClipLoss(check=False)])
    found = np.array([*by_key(tmp_path / "out").values()])
    assert abs(cosines[1::2].mean() - cosines[::2].mean()) < 0.01
    assert found[1::2].max() < found[::2].min()
    best = np.argsort(-cosines)[:100]
    assert 0.3 < (best % 2).mean() < 0.7  # by the cosine there is nothing to tell


def test_captions_are_embedded_where_there_are_no_vectors(pairs, embedded, tmp_path, client):  # noqa: F811
    folder, model = pairs["clip"]
    with pytest.raises(OutputError, match=r"no column 'text_embedding'.*--clip-score MODEL"):
        score_output(embedded, [NegClipLoss()], tmp_path / "out")
    run = ["score", str(embedded), str(tmp_path / "out"), "--clip-score", str(folder), "--neg-clip-loss"]
    run += ["--contrast-batch", "3", "--contrast-batches", "2"]
    done = CliRunner().invoke(app, [*run, "--scheduler-address", client.scheduler.address])
    assert done.exit_code == 0, done.output
    table = pq.read_table(tmp_path / "out")
    images, valid = list_to_matrix(table["image_embedding"])
    captions = table["caption"].to_pylist()
    rows = [row for row, text in enumerate(captions) if text and valid[row]]
    texts = transformers_own(model, folder, [captions[row] for row in rows], "clip")
    digests = row_digests(table.take(rows), "key", 0)
    batches = [np.argsort(mixed(digests, number))[:3] for number in range(2)]
    expected = oracle(images[rows], np.asarray(texts), batches, 0.01)
    found = [table["neg_clip_loss"][row].as_py() for row in rows]
    np.testing.assert_allclose(found, expected, atol=5e-6)
    assert table["neg_clip_loss"].null_count == len(table) - len(rows) == table["clip_score"].null_count
    said = read_record(str(next((tmp_path / "out").glob("*.parquet")))).scores["neg_clip_loss"]
    assert said["batches"] == [3, 3] and said["checked"]


@pytest.mark.usefixtures("in_this_process")
def test_a_recipe_scores_pairs_and_balances_clusters(pairs, shards, embedded, tmp_path):  # noqa: F811
    """By the model's own text tower; of the rows that pass as many of each cluster as are wanted."""
    find_centroids(embedded, 2).save(tmp_path / "c.safetensors")
    file = str(tmp_path / "c.safetensors")
    recipe = Recipe(
        model=str(pairs["clip"][0]),
        model_options={"normalize_embeddings": False},
        neg_clip_loss={"batch_size": 3, "batches": 2},
        clusters={"cluster": file},
        near={"like": str(embedded)},
        near_norm="2",
        where="neg_clip_loss < 0",
        balance={"clusters": file, "keep": 3, "by": "size", "order": "neg_clip_loss"},
    )
    summary = curate(shards, tmp_path / "out", recipe)
    passing = pq.read_table(tmp_path / "out/passing").to_pylist()
    assert len(passing) == 4 and (summary.unbalanced, summary.kept) == (1, 3)
    sums = np.bincount([row["cluster"] for row in passing], [row["balanced"] for row in passing])
    assert sums.tolist() == [each["keep"] for each in summary.steps["balanced"].clusters]
    gone = next(row for row in passing if not row["balanced"])
    assert gone["neg_clip_loss"] == min(
        r["neg_clip_loss"] for r in passing if r["cluster"] == gone["cluster"]
    )
    assert all(row["like"] > 1 for row in passing)  # each is of the reference, and there are others
    direct = score_output(
        embedded, [NegClipLoss(ClipTextEmbedder(pairs["clip"][0]), batch_size=3, batches=2)]
    )
    assert direct.complete
    found, own = by_key(embedded), by_key(tmp_path / "out/embeddings")
    assert own == {
        key: value if value is None else pytest.approx(value, abs=1e-6) for key, value in found.items()
    }
    again = curate(shards, tmp_path / "out", recipe)
    assert again.kept == 3 and again.steps["shards"].written == 0
    for wrong, said in (
        ({"balance": {"clusters": file}}, "keep is not given"),
        ({"balance": {"clusters": file, "keep": 0.5, "by": "x"}}, "balance: by='x'"),
        ({"balance": {"clusters": file, "most": 3}}, "balance: .*most"),
        ({"balance": {"clusters": 3, "keep": 0.5}}, "balance: clusters=3: expected text"),
        ({"neg_clip_loss": True, "model": None}, "neg_clip_loss: needs vectors of images"),
        ({"neg_clip_loss": {"batchs": 3}}, "neg_clip_loss: .*batchs"),
        ({"neg_clip_loss": 3}, "expected true, or names and values"),
        ({"near_norm": "1", "near": {"a": "b"}}, "norm='1': expected one of"),
    ):
        with pytest.raises(ConfigError, match=said):
            Recipe(**{"model": str(pairs["clip"][0]), **wrong})
    with pytest.raises(ConfigError, match="balance: there is no column 'absent'"):
        curate(
            shards,
            tmp_path / "new",
            replace(recipe, balance={"clusters": file, "keep": 3, "order": "absent"}),
        )
    assert not (tmp_path / "new").exists()


def test_what_is_refused(pairs, embedded, tmp_path, in_this_process):  # noqa: F811
    for wrong, said in (
        ({"temperature": 0}, "a number from 1e-06 to 1e\\+06"),
        ({"temperature": 1e-40}, "a number from"),  # of float32, in which scores would be NaN
        ({"batch_size": 0}, "batch_size"),
        ({"batches": 1.5}, "batches"),
        ({"seed": "a"}, "a whole number"),
        ({"pred_column": "text_embedding"}, "not free"),
        ({"text": "clip"}, "a TextEmbedder"),
    ):
        with pytest.raises(ConfigError, match=said):
            NegClipLoss(**wrong)
    other = pairs["siglip"][0]
    with pytest.raises(ConfigError, match=r"negCLIPLoss.*do not belong together|values"):
        score_output(embedded, [NegClipLoss(ClipTextEmbedder(other), pred_column="other")], tmp_path / "new")
    images, texts = made(40)
    write(tmp_path / "out", images, texts, (40,))
    with pytest.raises(ConfigError, match=r"of one space|do not belong|made the vectors"):
        other = {
            "image_embedding": {**L14, "dim": DIM},
            "text_embedding": {**L14, "weights": "sha256:1", "dim": DIM},
        }
        table = pq.read_table(tmp_path / "out")
        write_table(str(tmp_path / "two/0.parquet"), table, FileRecord("f", id_col="key", embeddings=other))
        score_output(tmp_path / "two", [NegClipLoss()])
    step = NegClipLoss(check=False).of_files({str(tmp_path / "out/0.parquet"): None})
    path = tmp_path / "out.contrast/000.batch"
    write_table(str(path), pq.read_table(path), FileRecord("other"))
    with pytest.raises(DatasetError, match="not the batch that the client has put there"):
        step.batches.read(0, None, 0, "")
    with pytest.raises(OutputError, match="no column 'key' of keys"):
        pq.write_table(pq.read_table(tmp_path / "out").drop_columns(["key"]), tmp_path / "out/0.parquet")
        NegClipLoss(check=False).of_files({str(tmp_path / "out/0.parquet"): None})
    assert json.dumps(step.scores)
