"""The page to label images: which rows it shows, and, in a real browser, that a label is that of the picture."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import NARROW
from colours import colour_of, image_of, write_tar
from PIL import Image
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.errors import ConfigError, DatasetError, OutputError
from curator_dask.frames.parquet import write_table
from curator_dask.frames.record import FileRecord
from curator_dask.image.fitting import fit_head
from curator_dask.labelling import label_page, pictures
from curator_dask.labelling.choosing import spread

SHARDS, ROWS, DIM = 3, 40, 8
ALL = SHARDS * ROWS
EVIL = "</script><script>document.title = 'taken over'</script><!--"
ODD, TURNED, NOISY, CUT, GONE = 5, 6, 9, 50, 51  # a key with signs, on its side, large, cut, failed
COPIES = (20, 21, 60)  # rows with one vector
RARE = {ODD: 4, 100: 1, 101: 1, 70: 2, 71: 2, 30: 3, 31: 3}  # rows of kinds that are rare


def key_of(row):
    return f'"a", {row * 1999:06d}' if row == ODD else f"{row * 1999:06d}"


def picture_of(row):
    key = key_of(row)
    if row == NOISY:
        noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
        Image.fromarray(noise).save(file := io.BytesIO(), "JPEG", quality=90)
        return file.getvalue()
    if row == TURNED:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (40, 20), colour_of(key)).save(file := io.BytesIO(), "JPEG", quality=95, exif=exif)
        return file.getvalue()
    image = image_of(key)
    return image[: len(image) // 2] if row == CUT else image


@pytest.fixture(scope="module")
def rows():
    """Vectors of one large kind and some rare ones; scores; a row that failed, and one without a score."""
    random = np.random.default_rng(1)
    vectors = random.standard_normal((ALL, DIM)) * 0.15
    vectors[:, 0] += 1
    for row, kind in RARE.items():
        vectors[row] = np.eye(DIM)[kind] + 0.15 * random.standard_normal(DIM)
    vectors[list(COPIES)] = vectors[COPIES[0]]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    frame = pd.DataFrame({"key": [key_of(row) for row in range(ALL)]})
    frame["caption"] = [EVIL if row == ODD else f"caption {row}" for row in range(ALL)]
    frame.loc[2, "caption"] = None
    score = 1 / (1 + np.exp(-random.standard_normal((3, ALL)) * 2))
    for name, values in zip(("good", "one", "two"), score, strict=True):
        frame[name] = values
    frame.loc[7, "good"] = np.nan
    frame["rating"] = 10 * score[1]
    frame["width"] = np.arange(ALL)
    frame["vector"] = list(vectors.astype(np.float32))
    frame.loc[GONE, "image_error"] = "undecodable: cut"
    return frame


@pytest.fixture(scope="module")
def out(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelling")
    for shard in range(SHARDS):
        numbers = range(shard * ROWS, (shard + 1) * ROWS)
        # In another order than the rows.
        images = [
            (f"{key_of(row)}.{'jpg' if row in (TURNED, NOISY) else 'png'}", picture_of(row))
            for row in numbers
        ]
        write_tar(folder / f"{shard}.tar", images[::-1])
        some = rows.iloc[shard * ROWS : (shard + 1) * ROWS]
        flat = pa.array(np.concatenate(some["vector"].to_list()))
        failed = pa.array(some["image_error"].notna())
        table = pa.Table.from_pandas(some.drop(columns="vector"), preserve_index=False)
        table = table.append_column("__url__", pa.array([str(folder / f"{shard}.tar")] * ROWS))
        table = table.set_column(
            table.column_names.index("image_error"), "image_error", table["image_error"].cast(pa.string())
        )
        table = table.append_column(
            "image_embedding", pa.FixedSizeListArray.from_arrays(flat, DIM, mask=failed)
        )
        scores = {"good": {"vectors": "image_embedding"}}
        record = FileRecord("f", id_col="key", embeddings={"image_embedding": {"dim": DIM}}, scores=scores)
        write_table(str(folder / "out" / f"{shard}.parquet"), table, record)
    return folder / "out"


def data_of(page):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.+?)</script>', page.read_text())[1]
    )


def shown(page):
    """Of each kind, the rows that a page shows, in their order."""
    data, found = data_of(page), {}
    by_key = {key_of(row): row for row in range(ALL)}
    for key, kind in zip(data["keys"], data["kind"], strict=True):
        found.setdefault(data["kinds"][kind], []).append(by_key[key])
    return found


def colour_in(uri):
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return np.asarray(image.convert("RGB"), float).mean((0, 1)), image.size


def is_nice(key):
    """By what the picture shows: most of all red."""
    return colour_of(key)[0] > 110


def test_rows_are_spread_as_by_brute_force():
    """Small kinds are seen where a uniform sample misses most; the draw is that of all distances."""
    random = np.random.default_rng(3)
    centres = np.linalg.qr(random.standard_normal((16, 16)))[0]
    kinds = np.array([0] * 3000 + [kind for kind in range(1, 13) for _ in range(3)])
    vectors = centres[kinds] + 0.08 * random.standard_normal((len(kinds), 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    missed = []
    for seed in range(5):
        found = spread(vectors, 24, 0.001, seed)
        assert len({*found}) == 24 and {*kinds[found]} == {*range(13)}
        missed.append(13 - len({*kinds[np.random.default_rng(seed).permutation(len(kinds))[:24]]}))
        draws = np.random.default_rng(seed)
        wanted = [int(draws.integers(len(vectors)))]
        exact = vectors.astype(np.float64)
        while len(wanted) < 24:
            far = 1 - (exact @ exact[wanted].T).max(1)
            likely = np.where(far > 0.001, far, 0) ** 4
            wanted.append(
                int(np.searchsorted(np.cumsum(likely) / likely.sum(), draws.random(), side="right"))
            )
        assert found == wanted
    assert min(missed) >= 9
    # What was drawn before counts as drawn.
    assert spread(vectors, 7, 0.001, 4, vectors[found[:9]])[0] not in found[:9]
    known = spread(vectors, 12, 0.001, 4, vectors[kinds == 0])
    assert sorted(kinds[known]) == [*range(1, 13)]
    # Near copies are drawn once, and the draw ends when there is nothing else.
    twice = np.repeat(vectors[-6:], 4, axis=0)
    few = spread(twice, 24, 0.001, 0)
    assert sorted(row // 4 for row in few) == [*range(6)]
    assert spread(twice[:1], 5, 0.03, 0) == [0] and spread(twice[:0], 5, 0.03, 0) == []


def test_a_page_shows_rare_kinds_once_and_what_is_left_out_is_counted(out, rows, tmp_path):
    page = tmp_path / "page.html"
    (tmp_path / "nice.csv").write_text(
        f"key,nice\n{key_of(1)},true\n{key_of(3)},\n{key_of(4)},false\nstranger,true\n"
    )
    said = label_page(
        out, page, "nice", number=200, where="width != 8", labels=tmp_path / "nice.csv", eps=1e-4
    )
    (found,) = shown(page).values()
    away = {8, GONE, 1, 4, CUT}
    assert {*found} | {*COPIES} == {*range(ALL)} - away | {*COPIES} and len({*found} & {*COPIES}) == 1
    assert (said.rows, said.filtered, said.failed, said.labelled, said.left) == (ALL, 1, 1, 2, ALL - 4)
    assert said.left == len(found) + said.near_copies + said.without_vector + said.without_picture
    assert (said.near_copies, said.without_vector, said.without_picture, said.unused) == (2, 0, 1, 1)
    (tmp_path / "one.csv").write_text(f"key,nice\n{key_of(COPIES[1])},true\n")
    for by in (None, "one"):  # near copies of what is labelled are not shown, either
        label_page(out, page, "nice", number=200, by=by, labels=tmp_path / "one.csv", eps=1e-4)
        assert not {*COPIES} & {row for some in shown(page).values() for row in some}
    with pytest.raises(OutputError, match=r"all 2 rows that were looked at are near copies of labelled ones"):
        label_page(out, page, "nice", where="width in (20, 21, 60)", labels=tmp_path / "one.csv")
    few = label_page(out, page, "nice", number=20, eps=0.001)
    (found,) = shown(page).values()
    assert len(found) == 20 == sum(few.shown.values()) and {RARE.get(row) for row in found} == {
        None,
        1,
        2,
        3,
        4,
    }
    first = page.read_bytes()
    label_page(out, page, "nice", number=20, eps=0.001)
    assert page.read_bytes() == first
    label_page(out, page, "nice", number=20, eps=0.001, seed=1)
    assert shown(page) != {"spread over the vectors": found}


def test_pictures_are_those_of_their_rows_upright_and_small_enough(out, tmp_path):
    label_page(out, tmp_path / "page.html", "nice", number=2000, eps=0)
    data = data_of(tmp_path / "page.html")
    colours = np.array([colour_of(key) for key in data["keys"]])
    sizes = {}
    for row, (key, uri) in enumerate(zip(data["keys"], data["pictures"], strict=True)):
        colour, sizes[key] = colour_in(uri)
        if key != key_of(NOISY):
            assert np.abs(colours - colour).sum(1).argmin() == row and np.abs(colours[row] - colour).max() < 4
    assert sizes[key_of(TURNED)] == (20, 40)
    assert max(sizes[key_of(NOISY)]) < 512 and max(map(len, data["pictures"])) <= 7_500
    urls = [data["shards"][each] for each in data["shard"]]
    assert urls == [str(out.parent / f"{int(key[-6:]) // 1999 // ROWS}.tar") for key in data["keys"]]


def test_rows_of_which_a_head_is_least_sure_come_first(out, rows, tmp_path):
    page = tmp_path / "page.html"
    said = label_page(out, page, "good", number=40, by="good", eps=0)
    least, high, low = shown(page).values()
    usable = np.setdiff1d(np.arange(ALL), [7, GONE])
    score = rows["good"].to_numpy()
    wanted = usable[np.argsort(np.abs(score[usable] - 0.5), kind="stable")]
    assert least == [row for row in wanted if row not in (CUT, *COPIES[1:])][:32]
    ranked = usable[np.argsort(score[usable], kind="stable")]
    assert len(high) == len(low) == 4 and {*high} <= {*ranked[-12:]} and {*low} <= {*ranked[:12]}
    assert [*said.shown.values()] == [32, 4, 4] and said.unscored == 1
    # Each beginning has some of all.
    assert {*data_of(page)["kind"][:12]} == {0, 1, 2}
    text = page.read_text()
    assert "32 nearest to 0.5 of good, 4 of the tenth with the highest good" in text
    assert "--label good --overwrite</code>" in text  # its scores are there already

    with pytest.raises(ConfigError, match=r"values from 0.\d+ to 9.\d+, so it is no probability"):
        label_page(out, page, "nice", by="rating")
    label_page(out, page, "nice", number=20, by="rating", at=3, eps=0)
    rating = rows["rating"].to_numpy()
    usable = np.setdiff1d(np.arange(ALL), [CUT, GONE, *COPIES[1:]])
    assert shown(page)["nearest to 3 of rating"] == [*usable[np.argsort(np.abs(rating[usable] - 3))][:16]]

    label_page(out, page, "kind", number=30, classes=["a b", "c", "d"], by=["good", "one", "two"], eps=0)
    nearest, ahead = shown(page).values()
    scores = np.sort(rows[["good", "one", "two"]].to_numpy(), axis=1)
    margin = scores[:, 2] - scores[:, 1]
    usable = np.setdiff1d(usable, [7])
    assert nearest == [*usable[np.argsort(margin[usable], kind="stable")][:24]]
    assert len(ahead) == 6 and min(margin[ahead]) >= np.sort(margin[usable])[-13]
    commands = re.findall(r'<code id="fit-\d">(.+?)</code>', page.read_text())
    assert [shlex.split(each.replace("&#39;", "'"))[3:] for each in commands] == [
        [f"kind_{head}.safetensors", "--labels", "kind.csv", "--label", "kind", "--positive", each]
        for head, each in (("a_b", "a b"), ("c", "c"), ("d", "d"))
    ]


def test_a_cluster_makes_the_same_page_and_how_far_it_is_is_said(out, tmp_path, request, monkeypatch, said):
    monkeypatch.setattr(pictures, "EVERY", 0)
    frame = pd.DataFrame({"key": [key_of(3), key_of(90), "stranger"], "nice": [True, False, True]})
    frame.to_csv(tmp_path / "nice.csv", index=False)
    options = {
        "number": 30,
        "eps": 0.001,
        "by": "good",
        "labels": [tmp_path / "nice.csv"],
        "where": "width < 110",
    }
    here = label_page(out, tmp_path / "same.html", "nice", **options)
    lines = [each for each in said.messages if "pictures made" in each]
    assert "1 of 24 pictures made, 0 s" in lines and len(lines) > 25
    said.messages.clear()
    request.getfixturevalue("client")
    there = label_page(out, tmp_path / "page.html", "nice", **options)
    lines = [each for each in said.messages if "pictures made" in each]
    assert 0 < len(lines) < 10 and all(" of " in each for each in lines)  # a shard at a time
    assert (there.labelled, there.unused, there.filtered) == (2, 1, 10)
    assert {**here.to_dict(), "path": 0, "seconds": 0} == {**there.to_dict(), "path": 0, "seconds": 0}
    assert (tmp_path / "same.html").read_bytes() == (tmp_path / "page.html").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "my label"}, "expected letters, digits and _, such as good"),
        ({"name": "key"}, "the column by which labels find their rows"),
        ({"name": "width"}, "there is a column 'width', which the scores of its head would replace"),
        ({"classes": ["yes"]}, "expected two to 9 different names"),
        ({"classes": ["a", "a"]}, "expected two to 9 different names"),
        ({"classes": ["a-b", "a+b", "c"]}, "their heads would have the names"),
        ({"classes": ["1", "1.0"]}, "in a CSV these are read as"),
        ({"classes": ["NA", "2"]}, "in a CSV these are read as [None, 2]"),
        (
            {"classes": ["1", "2", "x"]},
            "values of several types (1 as double, 2 as double, x as large_string)",
        ),
        ({"classes": ["true", "false", "unsure"]}, "values of several types (true as bool"),
        ({"classes": ["NA", "x"]}, "values of several types (NA as null"),
        ({"number": 5000}, "expected 2,000 at most"),
        ({"by": "god"}, "there is no such column (did you mean good"),
        ({"by": "nothing"}, "then `score --head nothing=FILE`"),
        ({"by": "caption"}, "expected scores, found large_string"),
        (
            {"by": ["good", "one"], "at": 0.5},
            "is where one column of scores decides, and 2 columns are given",
        ),
        ({"where": "width > 1000"}, "no row is left to be shown: of 120 rows 120 do not pass the condition"),
        ({"column": "vectors"}, "has no column 'vectors' of vectors"),
        ({"column": "vector"}, "Give the folder that embed wrote to"),
        ({"by": "good", "at": float("nan")}, "at=nan: expected the score"),
        ({"seed": -1}, "seed=-1: expected a whole number of at least 0"),
        ({"eps": 1.5}, "expected a number from 0 up and below 1"),
    ],
)
def test_what_cannot_be_labelled_is_refused(out, tmp_path, options, words):
    page = tmp_path / "page.html"
    with pytest.raises((ConfigError, OutputError)) as caught:
        label_page(out, page, **{"name": "nice", **options})
    assert words in str(caught.value) and not page.exists()


def test_keys_that_are_not_unique_are_refused_as_by_fit(out, tmp_path):
    table = pq.read_table(out / "0.parquet")
    for name in ("0", "1"):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    (tmp_path / "nice.csv").write_text(f"key,nice\n{key_of(1)},true\n")
    with pytest.raises(DatasetError, match="is that of 2 rows"):
        label_page(tmp_path, tmp_path / "page.html", "nice", labels=[tmp_path / "nice.csv"])
    pq.write_table(table.drop_columns("__url__"), tmp_path / "0.parquet")
    (tmp_path / "1.parquet").unlink()
    with pytest.raises(OutputError, match="do not say in which shards their images are"):
        label_page(tmp_path, tmp_path / "page.html", "nice")


def test_the_commands_of_the_docs_lead_from_labels_to_rows_that_pass(out, rows, tmp_path, client):
    """The loop, with somebody who labels by the red of the pictures."""
    shutil.copytree(out, tmp_path / "embeddings")
    for file in (tmp_path / "embeddings").iterdir():  # the loop makes that column
        table = pq.read_table(file)
        record = FileRecord("f", id_col="key", embeddings={"image_embedding": {"dim": DIM}})
        write_table(str(file), table.drop_columns("good").replace_schema_metadata(None), record)
    text = (Path(__file__).parent.parent / "docs" / "labelling.md").read_text()
    commands = [
        shlex.split(line.replace("/path/to", str(tmp_path)), comments=True)[1:]
        for block in re.findall(r"```bash\n(.+?)```", text, re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    assert [words[0] for words in commands] == ["label", "fit", "score", "label", "fit", "score", "filter"]
    rounds = []
    for words in commands:
        at = ["--scheduler-address", client.scheduler.address] if words[0] != "fit" else []
        more = ["--number", "40", "--eps", "0.001"] if words[0] == "label" else []
        done = CliRunner().invoke(app, [*words, *at, *more])
        assert done.exit_code == 0, done.output
        if words[0] == "label":
            data = data_of(Path(words[2]))
            rounds.append(data["keys"])
            labels = pd.DataFrame({"key": data["keys"], "good": [is_nice(key) for key in data["keys"]]})
            labels.to_csv(tmp_path / data["table"], index=False)
    first, second = map(set, rounds)
    assert len(first) == len(second) == 40 and not first & second
    assert "80 labelled rows" in CliRunner().invoke(app, commands[-3]).output
    scores = pq.read_table(tmp_path / "embeddings").to_pandas().set_index("key")["good"]
    assert {*pq.read_table(tmp_path / "best")["key"].to_pylist()} == {*scores.index[scores > 0.5]}
    assert 0 < (scores > 0.5).sum() < ALL


PIXEL = """() => {
  const image = document.getElementById("image"), canvas = document.createElement("canvas");
  const pen = canvas.getContext("2d");
  canvas.width = canvas.height = 1;
  pen.drawImage(image, 0, 0, 1, 1);
  return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""


def test_labels_of_the_page_are_those_of_its_pictures(out, open_page, tmp_path, seen):
    """Pressed, kept over a reload, saved, read by pandas, and fitted: each is of the picture that was seen."""
    file = tmp_path / "page.html"
    done = CliRunner().invoke(
        app, ["label", str(out), str(file), "--name", "nice", "--number", "40", "--eps", "0.001"]
    )
    assert done.exit_code == 0 and "40 pictures: spread over the vectors" in done.output, done.output
    page = open_page(file.as_uri())

    def count():
        return page.inner_text("#count")

    assert count() == "0 of 40, 0 yes, 0 no" and page.locator("#save").is_disabled()
    pressed = {}
    for number in range(30):
        key = page.inner_text("#key")
        page.evaluate("document.getElementById('image').decode()")
        pixel = np.array(page.evaluate(PIXEL))
        if key != key_of(NOISY):
            assert np.abs(pixel - colour_of(key)).max() < 4, key
        assert page.inner_text("#place") == f"Picture {number + 1} of 40"
        if number == 4:
            page.keyboard.press(" ")
            continue
        nice = is_nice(key)
        pressed[key] = nice
        page.keyboard.press(("1" if number % 2 else "y") if nice else ("2" if number % 3 else "n"))
    yes = sum(pressed.values())
    assert count() == f"30 of 40, {yes} yes, {29 - yes} no, 1 skipped" and min(yes, 29 - yes) >= 5
    # Undone, moved back to, taken away and labelled anew.
    for press in ("Backspace", "u", "ArrowLeft", "Delete"):
        page.keyboard.press(press)
    here = page.inner_text("#key")
    assert page.inner_text("#place") == "Picture 28 of 40" and page.inner_text("#mark") == ""
    assert count().startswith("27 of 40")
    page.keyboard.press(
        "2" if pressed[here] else "1"
    )  # the other one; on it goes to the next without a label
    assert page.inner_text("#place") == "Picture 29 of 40" and "Next, picture 29" in page.text_content(
        "#said"
    )
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("s")  # what has a label keeps it
    assert "Stays " in page.inner_text("#said")
    pressed[here] = not pressed[here]
    for _ in range(2):
        page.click(f"#classes [data-class='{int(not pressed[page.inner_text('#key')])}']")
    page.keyboard.press("Space")  # not the button that was clicked
    assert count().endswith("2 skipped")
    # In the grid: a click labels.
    page.select_option("#brush", label="labels it no")
    page.locator("#tiles .tile").nth(38).click()
    page.locator("#tiles .tile").nth(39).click()
    page.select_option("#brush", label="takes its label away")
    page.locator("#tiles .tile").nth(39).click()
    page.select_option("#brush", label="shows the picture")
    page.locator("#tiles .tile").nth(38).click()
    pressed[page.inner_text("#key")] = False
    assert page.inner_text("#mark") == "no"
    page.select_option("#filter", label="no")
    assert page.locator("#tiles .tile").count() == len(pressed) - sum(pressed.values())
    before = count()
    page.reload()
    assert count() == before and page.inner_text("#place") == "Picture 39 of 40"
    page.keyboard.press("u")
    assert page.inner_text("#place") == "Picture 40 of 40"  # what was done is known, too
    page.keyboard.press("u")
    with page.expect_download() as saved:
        page.click("#save")
    assert saved.value.suggested_filename == "nice.csv"
    saved.value.save_as(tmp_path / "nice.csv")
    table = pd.read_csv(tmp_path / "nice.csv", dtype={"key": str})
    assert table.columns.tolist() == ["key", "__url__", "nice"]
    assert (
        dict(zip(table["key"], table["nice"], strict=True)) == pressed
        and key_of(ODD) in data_of(file)["keys"]
    )
    # What the page says to run, where the table was saved.
    command = shlex.split(page.inner_text("#fit-1"))[1:]
    command = [str(tmp_path / word) if word in ("nice.csv", "nice.safetensors") else word for word in command]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and f"{len(pressed)} labelled rows" in done.output, done.output
    found = fit_head(out, "nice", labels=tmp_path / "nice.csv").rows
    assert dict(zip(found["key"], found["label"] == 1, strict=True)) == pressed
    assert page.title() == "Label: nice" and all(
        each.startswith(("file:", "data:", "blob:")) for each in seen.requests
    )

    # The next page has none of these.
    again = shlex.split(page.inner_text("#again"))
    assert again[3:] == ["nice-2.html", "--name", "nice", "--by", "nice", "--labels", "nice.csv"]
    label_page(out, tmp_path / "two.html", "nice", labels=tmp_path / "nice.csv", number=200, eps=0.001)
    data = data_of(tmp_path / "two.html")
    assert not {*data["keys"]} & {*pressed} and data["table"] == "nice-2.csv"
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#forget")
    assert count() == "0 of 40, 0 yes, 0 no"


def test_what_rows_say_is_text_and_narrow_windows_show_all(out, open_page, tmp_path):
    file = tmp_path / "page.html"
    several = ["a<b>", "c&d", "e", *(f"a class with a long name {number}" for number in range(4))]
    label_page(out, file, "kind", classes=several, by=["one", "two"], number=30, where="width < 30", eps=0)
    assert EVIL not in file.read_text()
    page = open_page(file.as_uri(), NARROW, "dark")
    at = data_of(file)["keys"].index(key_of(ODD))
    page.locator("#tiles .tile").nth(at).click()
    assert page.inner_text("#caption") == EVIL and page.inner_text("#key") == key_of(ODD)
    assert page.get_attribute("#image", "alt") == EVIL and page.title() == "Label: kind"
    page.keyboard.press("3")
    assert page.inner_text("#count").startswith("1 of 29, 0 a<b>, 0 c&d, 1 e, ")
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert "nearest to a draw" in page.inner_text("#kinds")
    low = page.evaluate("document.getElementById('moves').getBoundingClientRect().bottom")
    assert wide <= NARROW["width"] and low <= NARROW["height"]
    # Keys can be switched off, and a field takes its own.
    page.uncheck("#listen")
    page.keyboard.press("1")
    assert page.inner_text("#count").startswith("1 of ")
    # A browser that keeps nothing for a page: it says so, and labels all the same.
    (tmp_path / "frame.html").write_text(
        '<iframe sandbox="allow-scripts" src="page.html" height="900"></iframe>'
    )
    page.goto((tmp_path / "frame.html").as_uri())
    inside = page.frame_locator("iframe")
    assert inside.locator("#forgetful").is_visible() and not inside.locator("#keeps").is_visible()
    inside.locator("[data-class='1']").click()
    assert inside.locator("#count").inner_text().startswith("1 of 29, 0 a<b>, 1 c&d")
