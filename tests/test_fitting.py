"""Heads that are fitted to labels of some rows: against scikit-learn's own, and what is said of them."""

from __future__ import annotations

import json
import shutil
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import image_of, write_tar
from scipy.sparse.csgraph import connected_components
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_heads import L14
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.errors import ConfigError, DatasetError
from curator_dask.frames.parquet import write_table
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers import HeadClassifier, score_output
from curator_dask.image.fitting import copies, fit_head
from curator_dask.image.fitting.labels import labels_of

FILES, ROWS, DIM = 3, 80, 12
WRONG = (11, 95, 130)  # rows whose label `good` is not what their vector says


def write(folder: Path) -> tuple[np.ndarray, pa.Table]:
    """Vectors far from length 1, a null and one with NaN among them; two of three rows have labels. All rows as one."""
    random = np.random.default_rng(5)
    number = FILES * ROWS
    matrix = (3 + random.standard_normal((number, DIM)) * np.linspace(0.01, 2, DIM)).astype(np.float32)
    matrix[:, 4] = 7  # says nothing
    matrix[20, 3] = np.nan
    tells = (matrix - 3) @ np.linspace(1, -1, DIM)
    tells += 0.3 * random.standard_normal(number)
    good = tells > np.nanmedian(tells)
    good[list(WRONG)] ^= True
    none = np.arange(number) % 3 == 1
    table = pa.table(
        {
            "key": [f"{row:05d}" for row in range(number)],
            "__url__": [f"{folder.parent}/{row // ROWS}.tar" for row in range(number)],
            "image_embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(matrix.reshape(-1)), DIM, mask=pa.array(np.arange(number) == 33)
            ),
            "good": pa.array(good, mask=none),
            "number": pa.array(np.where(none | np.isnan(tells), np.nan, 10 * tells)),
            "two": pa.array(np.where(good, 4, 2).astype(np.int8), mask=none),
            "word": pa.array(
                np.where(good, "photo", np.where(matrix[:, 1] > 3, "scan", "drawing")), mask=none
            ),
            "same": pa.array([True if row % 2 else None for row in range(number)]),
            "few": pa.array([row < 3 if row < 40 else None for row in range(number)]),
            "list": [[1]] * number,
            "nothing": pa.nulls(number, pa.bool_()),
        }
    )
    for file in range(FILES):
        record = FileRecord("f", id_col="key", embeddings={"image_embedding": {**L14, "dim": DIM}})
        write_table(str(folder / f"{file}.parquet"), table.slice(file * ROWS, ROWS), record)
    usable = ~none & np.isfinite(matrix).all(1)
    usable[33] = False
    return np.flatnonzero(usable), table


@pytest.fixture
def labelled(tmp_path):
    usable, table = write(tmp_path / "out")
    matrix = np.array([row or [0] * DIM for row in table["image_embedding"].to_pylist()], np.float32)
    return tmp_path / "out", usable, table, matrix


def scored(out, found, tmp_path):
    found.save(tmp_path / "head.safetensors")
    assert score_output(out, [HeadClassifier(tmp_path / "head.safetensors", "made")]).complete
    return pq.read_table(out)["made"].to_pylist()


@pytest.mark.parametrize("label", ["good", "two", "word"])
def test_kinds_are_told_apart_as_scikit_learn_does(labelled, label, tmp_path, in_this_process):
    out, usable, table, matrix = labelled
    found = fit_head(out, label, positive="photo" if label == "word" else None, seed=4, copies=0)
    wanted = np.array(table["good"].to_pylist())[usable].astype(bool)
    vectors = matrix[usable].astype(np.float64)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=found.freedom, max_iter=2000))
    parts = StratifiedKFold(5, shuffle=True, random_state=4)
    unseen = cross_val_predict(model, vectors, wanted, cv=parts, method="predict_proba")[:, 1]
    assert found.rows["key"].tolist() == [f"{row:05d}" for row in usable]
    np.testing.assert_allclose(found.scores, unseen, atol=1e-4)
    assert found.figures["auc"] == pytest.approx(roc_auc_score(wanted, unseen), abs=1e-4)
    at = found.figures["thresholds"][3]
    assert at["kept"] == pytest.approx((unseen > 0.75).mean())
    assert at["precision"] == pytest.approx(wanted[unseen > 0.75].mean())
    assert at["recall"] == pytest.approx((unseen[wanted] > 0.75).mean())
    scores = scored(out, found, tmp_path)
    rows = [row for row in range(len(matrix)) if row not in (20, 33)]
    assert scores[20] is scores[33] is None
    said = model.fit(vectors, wanted).predict_proba(matrix[rows])[:, 1]
    np.testing.assert_allclose([scores[row] for row in rows], said, atol=1e-4)


def test_numbers_are_foretold_as_scikit_learn_does(labelled, tmp_path, in_this_process):
    out, usable, table, matrix = labelled
    found = fit_head(out, "number", copies=0)
    wanted, vectors = np.array(table["number"].to_pylist())[usable], matrix[usable].astype(np.float64)
    model = make_pipeline(StandardScaler(), Ridge(alpha=1 / found.freedom))
    unseen = cross_val_predict(model, vectors, wanted, cv=KFold(5, shuffle=True, random_state=0))
    np.testing.assert_allclose(found.scores, unseen, rtol=1e-5, atol=1e-4)
    assert found.figures["r2"] == pytest.approx(1 - np.var(unseen - wanted) / np.var(wanted), abs=0.01)
    assert found.figures["r2"] > 0.9
    rows = [row for row in range(len(matrix)) if row not in (20, 33)]
    scores = scored(out, found, tmp_path)
    np.testing.assert_allclose(
        [scores[row] for row in rows], model.fit(vectors, wanted).predict(matrix[rows]), rtol=1e-4, atol=1e-3
    )


def write_vectors(folder, matrix, **columns):
    folder.mkdir()
    table = {"key": [f"{row:05d}" for row in range(len(matrix))], **columns}
    table["__url__"] = ["/shards/0.tar"] * len(matrix)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
    pq.write_table(pa.table({**table, "image_embedding": vectors}), folder / "0.parquet")
    return folder


def test_copies_of_unseen_rows_are_not_seen(tmp_path):
    """Images that come four times, with a label by chance each: there is nothing to foretell, but by the copies."""
    random = np.random.default_rng(2)
    images, dim = 100, 128
    which = random.permutation(np.repeat(np.arange(images), 4))
    centres = random.standard_normal((images, dim))
    matrix = (centres[which] + 0.05 * random.standard_normal((len(which), dim))).astype(np.float32)
    luck = random.random(images) > 0.5
    out = write_vectors(tmp_path / "out", matrix, luck=luck[which], number=random.random(images)[which])
    plain, apart = (fit_head(out, "luck", copies=copies) for copies in (0, 0.05))
    assert plain.figures["auc"] > 0.95 and abs(apart.figures["auc"] - 0.5) < 0.15
    # The oracle: by all pairs at once, and scikit-learn's own cut.
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    near = unit @ unit.T >= 0.95
    groups = np.argmax(near, axis=1)  # the first of each; here they are whole
    assert all(len({*which[groups == each]}) == 1 for each in groups) and len({*groups}) == images
    assert (apart.copies.groups[:, None] == apart.copies.groups).tolist() == near.tolist()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=apart.freedom, max_iter=2000))
    cut = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    unseen = cross_val_predict(
        model,
        matrix.astype(np.float64),
        luck[which],
        cv=cut,
        groups=apart.copies.groups,
        method="predict_proba",
    )[:, 1]
    np.testing.assert_allclose(apart.scores, unseen, atol=1e-4)
    assert "400 of 400 rows are near copies of others (1 - cosine up to 0.05), in 100 groups" in str(apart)
    assert (apart.to_dict()["copies"], apart.to_dict()["copy_groups"], apart.to_dict()["apart"]) == (
        400,
        100,
        True,
    )
    assert plain.digest != apart.digest and plain.to_dict()["copies"] == 0
    assert fit_head(out, "number").figures["r2"] < 0.1 < 0.8 < fit_head(out, "number", copies=0).figures["r2"]


def test_vectors_that_all_point_one_way_are_told_apart_all_the_same(tmp_path):
    random = np.random.default_rng(3)
    matrix = 12 + random.standard_normal((200, 16)).astype(np.float32)
    matrix[100:140] = matrix[:40]
    good = matrix[:, 3] > 12
    found = fit_head(write_vectors(tmp_path / "out", matrix, good=good), "good")
    assert found.copies.eps < 0.05 and found.copies.apart and found.figures["auc"] > 0.9
    assert (found.copies.groups[100:140] == found.copies.groups[:40]).all()
    # All rows of a kind are one image: nothing can be held apart, and that is told.
    matrix[good] = matrix[good][0]
    found = fit_head(write_vectors(tmp_path / "same", matrix, good=good), "good")
    assert not found.copies.apart and "the figures are too good" in str(found)
    with pytest.raises(ConfigError, match=r"copies=1 \(--copies\): expected 1 - cosine"):
        fit_head(tmp_path / "same", "good", copies=1)


def test_labels_that_are_wrong_come_first(labelled):
    out, _, _, _ = labelled
    found = fit_head(out, "good")
    worst = [int(hit.key) for hit in found.doubtful(12)]
    assert {*WRONG} - {row for row in WRONG if row % 3 == 1} <= {*worst}
    assert f"  {found.doubtful()[0].score:.3f}" in str(found)
    assert found.labelled.told == "160 labelled rows; 2 of them have no vector"


def test_of_more_rows_some_are_taken(labelled):
    out, _, _, _ = labelled
    found = fit_head(out, "good", most=50)
    assert 48 <= len(found.rows) <= 50
    assert {*found.rows["key"]} < {*fit_head(out, "good").rows["key"]}
    assert found.as_bytes() == fit_head(out, "good", most=50).as_bytes()
    assert found.as_bytes() != fit_head(out, "good", most=50, seed=1).as_bytes()


def test_a_head_is_for_the_vectors_that_it_was_fitted_to(labelled, tmp_path, in_this_process):
    out, _, table, _ = labelled
    fit_head(out, "good").save(tmp_path / "head.safetensors")
    record = FileRecord(
        "f", id_col="key", embeddings={"image_embedding": {**L14, "dim": DIM, "model": "another"}}
    )
    write_table(str(tmp_path / "other/0.parquet"), table, record)
    with pytest.raises(ConfigError, match=r"head.safetensors.*model another, not"):
        score_output(tmp_path / "other", [HeadClassifier(tmp_path / "head.safetensors", "made")])
    assert score_output(
        tmp_path / "other", [HeadClassifier(tmp_path / "head.safetensors", "made", check=False)]
    ).complete


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl", "numbers"])
def test_labels_of_a_table_are_found_by_key(labelled, tmp_path, form):
    out, _, table, _ = labelled
    frame = table.select(["key", "good"]).to_pandas().dropna().sample(frac=1, random_state=2)
    frame.loc[len(table)] = ["stranger" if form != "numbers" else "9999", True]
    path = tmp_path / f"labels.{'csv' if form == 'numbers' else form}"
    frame = pd.concat([frame, frame[:3]])  # rows that say the same again
    if form == "numbers":  # as spreadsheets make of keys with leading zeros
        frame = frame.assign(key=frame["key"].astype(int))
    if form == "parquet":
        frame.astype({"good": bool}).to_parquet(path)
    elif form == "jsonl":
        frame.astype({"good": bool}).to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False)
    found = fit_head(out, "good", labels=path)
    assert found.labelled.told == "160 labelled rows; 2 of them have no vector; 1 label of no row"
    assert found.as_bytes() == fit_head(out, "good").as_bytes()
    if form == "csv":  # rows without a label are none, also among labels that are words
        rows = table.select(["key", "good"]).to_pandas()
        words = rows["good"].map({True: "yes", False: "no"})
        rows.assign(good=words).to_csv(path, index=False)
        assert "nan" not in path.read_text() and words.isna().any()
        told = fit_head(out, "good", labels=path, positive="yes").labelled.told
        assert told == "160 labelled rows; 2 of them have no vector"


def test_of_several_tables_the_last_label_counts(labelled, tmp_path):
    """Of several rounds: an image that two label has the later label, and it is counted and said."""
    out, _, table, _ = labelled
    frame = table.select(["key", "__url__", "good"]).to_pandas().dropna().sample(frac=1, random_state=3)
    frame["good"] = frame["good"].astype(bool)
    first, later = frame[:100].copy(), frame[90:].astype({"good": object})
    first.loc[first.index[95:], "good"] ^= True  # five that the later table corrects
    first.loc[first.index[90], "good"] ^= True
    later.loc[later.index[0], "good"] = None  # no label takes none away
    first = pd.concat([first, pd.DataFrame({"key": ["stranger"], "good": [True]})])
    first.drop(columns="__url__").to_csv(tmp_path / "first.csv", index=False)  # by key alone
    later.to_parquet(tmp_path / "later.parquet")
    both = [tmp_path / "first.csv", tmp_path / "later.parquet"]
    found = fit_head(out, "good", labels=both)
    wanted = {**first.set_index("key")["good"].to_dict(), **later.dropna().set_index("key")["good"].to_dict()}
    rows = found.rows.set_index("key")["label"]
    assert rows.to_dict() == {key: float(wanted[key]) for key in rows.index}
    assert (
        "160 labelled rows; 2 of them have no vector; 1 label of no row; 5 rows with several"
        in found.labelled.told
    )
    assert found.to_dict()["overruled"] == 5
    assert found.as_bytes() != fit_head(out, "good", labels=both[::-1]).as_bytes()
    assert found.as_bytes() == fit_head(out, "good", labels=[both[0], *both]).as_bytes()
    arguments = ["fit", str(out), str(tmp_path / "good.safetensors"), "--label", "good"]
    done = CliRunner().invoke(app, [*arguments, "--labels", str(both[0]), "--labels", str(both[1])])
    assert done.exit_code == 0 and "that of the last table counts" in done.output, done.output
    assert (tmp_path / "good.safetensors").read_bytes() == found.as_bytes()
    # Numbers of several types are numbers; words and booleans are not one another.
    frame.assign(good=3).head(40).to_parquet(tmp_path / "ints.parquet")
    frame.assign(good=4.5).tail(40).to_parquet(tmp_path / "floats.parquet")
    numbers = fit_head(out, "good", labels=[tmp_path / "ints.parquet", tmp_path / "floats.parquet"])
    assert {*numbers.labels.values} == {0.0, 1.0} and numbers.labels.kind == "4.5"
    frame.assign(good="yes").to_csv(tmp_path / "words.csv", index=False)
    with pytest.raises(
        DatasetError, match=r"are bool in .*first.csv and large_string in .*words.csv: write the same"
    ):
        fit_head(out, "good", labels=[both[0], tmp_path / "words.csv"])


def test_keys_that_are_not_unique_need_their_shards(labelled, tmp_path):
    out, _, table, _ = labelled
    twice = table.set_column(0, "key", pa.array([f"{row % ROWS:05d}" for row in range(len(table))]))
    for file in range(FILES):
        pq.write_table(twice.slice(file * ROWS, ROWS), out / f"{file}.parquet")
    frame = twice.select(["key", "__url__", "good"]).to_pandas().dropna().sample(frac=1, random_state=2)
    frame.to_csv(tmp_path / "labels.csv", index=False)
    assert (
        fit_head(out, "good", labels=tmp_path / "labels.csv").as_bytes() == fit_head(out, "good").as_bytes()
    )
    # As spreadsheets make of keys with leading zeros, also of 00000; and of rows whose keys are numbers.
    numbers = frame.assign(key=frame["key"].astype(int), good=frame["good"].astype(bool))
    for name in ("numbers.csv", "numbers.parquet"):
        numbers.to_csv(tmp_path / name) if name.endswith("csv") else numbers.to_parquet(tmp_path / name)
        found = fit_head(out, "good", labels=tmp_path / name)
        assert found.as_bytes() == fit_head(out, "good").as_bytes() and not found.labelled.unused
    shutil.copytree(out, tmp_path / "numbers")
    for path in (tmp_path / "numbers").iterdir():
        rows = pq.read_table(path)
        pq.write_table(rows.set_column(0, "key", rows["key"].cast(pa.int64())), path)
    found = fit_head(tmp_path / "numbers", "good", labels=tmp_path / "labels.csv")
    assert found.as_bytes() == fit_head(out, "good").as_bytes() and not found.labelled.unused
    frame.drop_duplicates("key").drop(columns="__url__").to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(DatasetError, match=r"is that of 3 rows.*a column '__url__'"):
        fit_head(out, "good", labels=tmp_path / "labels.csv")
    frame.drop(columns="__url__").to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(DatasetError, match="in several rows that differ in 'good'"):
        fit_head(out, "good", labels=tmp_path / "labels.csv")
    frame.assign(key="no").drop_duplicates("__url__").to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(ConfigError, match=r"has labels of 'no' of '.*none of which is the key of a row"):
        fit_head(out, "good", labels=tmp_path / "labels.csv")
    frame.rename(columns={"key": "id"}).to_csv(tmp_path / "others.csv", index=False)
    with pytest.raises(DatasetError, match=r"expected a column 'key' .*Name it 'key', as in the output"):
        fit_head(out, "good", labels=tmp_path / "others.csv")
    (tmp_path / "keys.txt").write_text("0001")
    with pytest.raises(DatasetError, match="a list of values, without labels"):
        fit_head(out, "good", labels=tmp_path / "keys.txt")
    with pytest.raises(DatasetError, match="'key' is the column of the keys"):
        fit_head(out, "key", labels=tmp_path / "labels.csv")
    with pytest.raises(DatasetError, match=r"has no column 'goo' of labels \(did you mean good"):
        fit_head(out, "goo", labels=tmp_path / "labels.csv")


@pytest.mark.parametrize(
    "label, positive, words",
    [
        ("goood", None, "has no column 'goood' of labels (did you mean good"),
        ("word", None, "has the values 'drawing', 'photo', 'scan': say which of them"),
        ("word", "car", "has no value 'car' (positive, --positive); it has 'drawing', 'photo', 'scan'"),
        ("same", None, "are 'true' and 0 are not: label 5 of each at least"),
        ("few", None, "3 are 'true'"),
        ("list", None, "expected labels that are booleans, numbers or text, found list"),
        ("nothing", None, "no row has a label in 'nothing': each is null"),
    ],
)
def test_labels_that_are_none_are_refused(labelled, label, positive, words):
    with pytest.raises(ConfigError) as caught:
        fit_head(labelled[0], label, positive=positive)
    assert words in str(caught.value)


def test_labels_of_odd_types():
    def kind(values, positive=None, of=None):
        return labels_of(pa.array(values, of), "name", positive).kind

    assert kind(["01", "1"] * 10, "1") == "1" and kind(["01", "2"] * 10, 1) == "01"
    assert kind([True, False] * 5, True) == "true" and kind(["a", "b"] * 5, "b", pa.string_view()) == "b"
    assert kind([Decimal(1), Decimal(3)] * 5) == "3"
    large = labels_of(pa.array([2**63, 2**60, 5, 7] * 5, pa.uint64()), "name", None)
    assert large.kind is None and large.values[0] == 2.0**63
    for values in (["1,5", "2", "3", "4"] * 5, ["0", "1", "?", "0.5"] * 5, ["1,5", "2,5"] * 5):
        with pytest.raises(ConfigError, match=r"among numbers: .*a decimal point"):
            labels_of(pa.array(values), "name", None)
    with pytest.raises(ConfigError, match="has the values '1', '2': say which"):
        labels_of(pa.array(["1", "2"] * 10), "name", None)
    with pytest.raises(ConfigError, match=r"20 labels of 1e\+30 or more"):
        labels_of(pa.array([1e302, 1e31, 5.0, 7.0] * 10), "name", None)


def test_the_command(labelled, tmp_path):
    out, head, sheet = labelled[0], tmp_path / "good.safetensors", tmp_path / "doubtful.png"
    for file in range(FILES):
        images = [(f"{row:05d}.png", image_of(str(row))) for row in range(file * ROWS, (file + 1) * ROWS)]
        write_tar(tmp_path / f"{file}.tar", images)
    command = ["fit", str(out), str(head), "--label", "good"]
    done = CliRunner().invoke(app, [*command, "--json", str(tmp_path / "said.json"), "--sheet", str(sheet)])
    assert done.exit_code == 0, done.output
    assert "good: 7" in done.output and "AUC 0.9" in done.output
    assert f"curator-dask score {out} --head good={head}" in done.output
    assert json.loads((tmp_path / "said.json").read_text())["auc"] > 0.9
    assert sheet.stat().st_size > 1000
    # Labels that each speak for their score have none to show.
    matrix, none = labelled[3], tmp_path / "none.png"
    far = {f"{row:05d}": one[-1] > 3 for row, one in enumerate(matrix) if abs(one[-1] - 3) > 2}
    pd.DataFrame({"key": [*far], "far": [*far.values()]}).to_parquet(tmp_path / "far.parquet")
    given = ["--label", "far", "--labels", str(tmp_path / "far.parquet"), "--sheet", str(none)]
    done = CliRunner().invoke(app, ["fit", str(out), str(tmp_path / "far.safetensors"), *given])
    assert done.exit_code == 0 and "none.png: not written: no label speaks" in done.output, done.output
    assert not none.exists()
    assert head.read_bytes() == fit_head(out, "good").as_bytes()

    before = head.read_bytes(), head.stat().st_mtime_ns
    again = CliRunner().invoke(app, [*command, "--json", str(tmp_path / "again.json")])
    assert again.exit_code == 0 and f"{head}: nothing to do, it has this head" in again.output, again.output
    assert (tmp_path / "again.json").read_text() == (tmp_path / "said.json").read_text()
    assert (head.read_bytes(), head.stat().st_mtime_ns) == before
    written = ["of other labels, vectors or settings, or damaged", "--overwrite"]
    for other in ("--label two", "--label good --seed 1", "--label word --positive photo"):
        refused = CliRunner().invoke(app, [*command[:3], *other.split()])
        assert refused.exit_code == 2, refused.output
        said = " ".join(refused.output.replace("│", "").split())
        assert all(each in said for each in written), said
    for at in (-1, -41):  # the exponent of a number
        damaged = bytearray(before[0])
        damaged[at] ^= 0x40
        head.write_bytes(damaged)
        refused = CliRunner().invoke(app, command)
        assert refused.exit_code == 2 and "or damaged" in " ".join(refused.output.split()), refused.output
    head.write_bytes(before[0][:-1])
    assert CliRunner().invoke(app, command).exit_code == 2
    head.write_bytes(b"something else")
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2 and "is no head of" in refused.output
    assert CliRunner().invoke(app, [*command, "--overwrite"]).exit_code == 0
    assert head.read_bytes() == before[0]


def test_a_file_of_the_same_head_is_known(labelled, tmp_path):
    """By what it was fitted to: one label, one vector or a setting more is another head."""
    out, usable, table, matrix = labelled
    found = fit_head(out, "good")
    found.save(tmp_path / "good.safetensors")
    assert found.is_in(tmp_path / "good.safetensors")
    record = FileRecord("f", id_col="key", embeddings={"image_embedding": {**L14, "dim": DIM}})
    is_null = table["image_embedding"].combine_chunks().is_null()
    for other in ("in one file", "a label", "a vector"):
        labels, vectors = table["good"].to_pylist(), matrix.copy()
        if other == "a label":
            labels[usable[5]] ^= True
        elif other == "a vector":
            vectors[usable[5], 0] += 1e-3
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM, mask=is_null)
        rows = {name: table[name] for name in table.column_names}
        rows |= {"good": pa.array(labels), "image_embedding": lists}
        write_table(str(tmp_path / other / "0.parquet"), pa.table(rows), record)
        same = fit_head(tmp_path / other, "good").is_in(tmp_path / "good.safetensors")
        assert same is (other == "in one file")


@pytest.mark.parametrize("pairs", [copies._PAIRS, 500])
def test_groups_of_copies_are_those_of_all_pairs(monkeypatch, pairs):
    """Also where most rows are of one group, of whose pairs nothing is to be learnt."""
    monkeypatch.setattr(copies, "_PAIRS", pairs)
    random = np.random.default_rng(5)
    for largest in (0, 150, 300):
        centres = random.standard_normal((12, 8))
        which = np.where(np.arange(300) < largest, 0, random.integers(0, 12, 300))
        vectors = (centres[which] + 0.15 * random.standard_normal((300, 8))).astype(np.float32)
        vectors = vectors[random.permutation(300)]
        vectors[:9] = 0
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        for found in copies.find_copies(vectors, 0.05):
            near = unit @ unit.T >= 1 - found.eps
            expected = connected_components(near, directed=False)[1]
            assert (
                len({*zip(expected, found.groups, strict=True)}) == len({*expected}) == len({*found.groups})
            )


def test_many_rows_that_are_all_the_same(monkeypatch):
    """Pairs that tell nothing new are not made a list of: of so many that would take minutes."""
    looked_at = []
    joined = copies._joined
    monkeypatch.setattr(
        copies, "_joined", lambda groups, *pairs: looked_at.append(len(pairs[0])) or joined(groups, *pairs)
    )
    found = [*copies.find_copies(np.ones((2000, 4), np.float32), 0.05)]
    assert [each.sizes.tolist() for each in found] == [[2000]] * 7
    assert len(looked_at) == 7  # of the first block of rows, once for each eps
