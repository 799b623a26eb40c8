"""The page of an output: what it counts and shows, read from its text and in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
import tarfile

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import LAPTOP, NARROW
from colours import write_tar
from PIL import Image
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.dedup import SemanticDeduplication
from curator_dask.dedup.sheet import find_groups
from curator_dask.errors import ConfigError, OutputError
from curator_dask.image.classifiers import ReferenceSimilarity, score_output
from curator_dask.image.embedders import TimmImageEmbedder
from curator_dask.image.embedders.similar import similar_to_key
from curator_dask.image.fitting import fit_head
from curator_dask.image.statistics import ImageStatistics
from curator_dask.labelling import label_page
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.filtering import filter_output
from curator_dask.report import making
from curator_dask.report.atlas import make_atlas
from curator_dask.report.folder import open_folder
from curator_dask.report.making import make_report
from curator_dask.report.mapping import names_of
from curator_dask.report.measures import shortest_between, steps_of
from curator_dask.report.twins import read_twins
from curator_dask.rows.images import read_images
from curator_dask.rows.thumbnails import read_thumbnails
from curator_dask.tables import join_output
from curator_dask.text.balance import balance_output

EVIL = "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 'taken over'\">"
WORDS = ("a red wall", "green grass", "blue water")
SHARDS, ROWS = 3, 20


def encoded(number: int, turned: bool = False) -> bytes:
    """A picture that differs from others in size, brightness and noise, or one lying on its side."""
    rng = np.random.default_rng(number)
    size = (40, 20) if turned else (24 + number % 9, 24 + number % 7)
    pixels = np.zeros((size[1], size[0], 3))
    pixels[:, :, number % 3] = 60 + 3 * (number % 50)
    image = Image.fromarray((pixels + rng.uniform(0, 1 + number % 40, pixels.shape)).astype(np.uint8))
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    image.save(file := io.BytesIO(), "JPEG", quality=95, exif=exif)
    return file.getvalue()


def write_photographs(folder):
    """Three shards of twenty: an image turned by EXIF, one cut, one missing, and a caption and a name that are HTML."""
    for shard in range(SHARDS):
        members, rows = [], []
        for number in range(shard * ROWS, (shard + 1) * ROWS):
            key = "<b>5" if number == 5 else f"{number:05d}"
            image = encoded(number, turned=number == 6)
            if number == 7:
                image = image[: len(image) // 2]
            if number != 8:
                members.append((f"{key}.jpg", image))
            caption = EVIL if number == 5 else f"{WORDS[number % 3]} number {number}"
            rating = [None, float("nan"), 0.1 * number][min(number, 2)]
            rows.append({"key": key, "caption": caption, "rating": rating, "order": number % 4})
        write_tar(folder / f"{shard:05d}.tar", members)
        table = pa.Table.from_pylist(rows).cast(
            pa.schema([("key", "string"), ("caption", "string"), ("rating", "float32"), ("order", "int16")])
        )
        pq.write_table(table, folder / f"{shard:05d}.parquet")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The output, and its page."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "data").mkdir()
    write_photographs(folder / "data")
    with dask.config.set(scheduler="sync"):
        dataset = ImageTextPairDataset.from_webdataset(str(folder / "data"), id_col="key")
        dataset = ImageStatistics(["brightness", "bytes", "phash", "format"])(dataset)
        summary = TimmImageEmbedder("test_vit", pretrained=False)(dataset).save_metadata(folder / "out")
        SemanticDeduplication(eps=0.01)(folder / "out").save(folder / "duplicates")
    (folder / "run.json").write_text(json.dumps(summary.to_dict()))
    page = folder / "report.html"
    arguments = ["report", folder / "out", page, "--summary", folder / "run.json"]
    arguments += ["--duplicates", folder / "duplicates"]
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    return folder


def frame_of(folder):
    return pq.read_table(folder / "out").to_pandas(types_mapper=pd.ArrowDtype)


def data_of(page):
    """What the page's script works with."""
    text = page.read_text()
    return json.loads(re.search(r'<script type="application/json" id="data">(.+?)</script>', text)[1])


def unpacked(said):
    return np.frombuffer(base64.b64decode(said["base64"]), said["kind"])


def check_counts(data, frame):
    """The rows on both sides of each threshold, as pandas counts them."""
    for measure in data["measures"]:
        column = frame[measure["name"]]
        values = column.dropna()
        values = values[~np.isnan(values.to_numpy(float))]
        assert measure["known"] == len(values)
        assert sum(measure["heights"]) == len(values)
        assert measure["steps"] == sorted(set(measure["steps"]))
        numbers = values.to_numpy(np.float32 if measure["single"] else np.float64)
        for step, up, down in zip(measure["steps"], measure["atLeast"], measure["atMost"], strict=True):
            at = numbers.dtype.type(step)
            assert (up, down) == ((numbers >= at).sum(), (numbers <= at).sum())


def test_counts_are_those_of_the_files(made):
    data, frame = data_of(made / "report.html"), frame_of(made)
    names = [measure["name"] for measure in data["measures"]]
    assert names == ["bytes", "brightness", "rating", "order"]  # what was made first; a hash has no threshold
    assert (data["rows"], data["whole"]) == (SHARDS * ROWS, True)
    check_counts(data, frame)
    by_key = {key: row for row, key in enumerate(frame["key"])}
    rows = [by_key[key] for key in data["keys"]]
    for measure in data["measures"]:
        values = frame[measure["name"]].to_numpy(float, na_value=np.nan)[rows]
        np.testing.assert_array_equal(unpacked(measure["values"]), values)


def flow_of(text):
    return re.findall(r'<th scope="row">([^<]+)</th><td class="number">([\d,]+)</td><td class="faint">', text)


def test_the_head_adds_up_and_says_what_made_it(made):
    text = (made / "report.html").read_text()
    assert flow_of(text) == [
        ("rows in", "60"),
        ("rows of the output", "60"),
        ("without a vector", "2"),
        ("with a vector", "58"),
    ]
    assert "why: see failures" in text
    run = json.loads((made / "run.json").read_text())
    assert f"then {run['images_per_second']:,.1f} images/s" in text
    assert f"torch {run['versions']['torch']}" in text
    assert "test_vit" in text and "3 shards in" in text


def test_what_rows_say_is_text_on_the_page(made, open_page, seen):
    text = (made / "report.html").read_text()
    assert EVIL not in text and "<b>5" not in text and "<script>document" not in text
    page = open_page((made / "report.html").as_uri())
    page.select_option("#column-0", label="rating")
    page.fill("#value-0", "0.5")
    page.press("#value-0", "Enter")
    assert page.title().endswith("/out")
    shown = page.locator("#panels .caption", has_text="taken over").first
    assert shown.text_content() == EVIL
    assert page.locator("#panels .key", has_text="<b>5").count()
    assert [url.partition(":")[0] for url in seen.requests if not url.startswith("data:")] == ["file"]


def picture_of(data, key):
    return data["pictures"][unpacked(data["picture"])[data["keys"].index(key)]]


def test_pictures_are_upright_and_what_fails_has_a_reason(made):
    data = data_of(made / "report.html")
    with Image.open(io.BytesIO(base64.b64decode(picture_of(data, "00006").partition(",")[2]))) as image:
        assert image.size == (64, 128)
    assert picture_of(data, "00007").startswith("truncated")
    assert picture_of(data, "00008").startswith("missing")
    text = (made / "report.html").read_text()
    assert re.search(
        r'<div class="image none">truncated: .+?</div>\s*<figcaption><span class="key">00007', text
    )


def kept(page):
    return int(re.match(r"([\d,]+) of 60 rows kept", page.inner_text("#kept"))[1].replace(",", ""))


def test_a_threshold_moves_the_count_to_what_pandas_gives(made, open_page):
    frame = frame_of(made)
    page = open_page((made / "report.html").as_uri())
    page.select_option("#column-0", label="rating")
    page.fill("#value-0", "2.3")  # a value of the column: float32's 2.3 is above the decimal number
    page.press("#value-0", "Enter")
    assert kept(page) == (frame["rating"].fillna(np.nan).to_numpy(np.float32) >= np.float32(2.3)).sum() == 37
    assert page.input_value("#where") == "rating >= 2.3"
    page.select_option("#side-0", "<=")
    assert kept(page) == 22
    page.focus("#slider-0")
    page.keyboard.press("Home")
    assert kept(page) == 1
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    below, column = float(page.input_value("#value-0")), frame["rating"].to_numpy(np.float32, na_value=np.nan)
    assert kept(page) == (column <= np.float32(below)).sum() == 5
    page.select_option("#column-1", label="order")
    page.fill("#value-1", "2")
    page.press("#value-1", "Enter")
    assert kept(page) == ((column <= np.float32(below)) & (frame["order"].to_numpy() >= 2)).sum() > 0
    where = page.input_value("#where")
    assert where == f'rating <= {below:g} and "order" >= 2'
    assert filter_output(made / "out", where=where).kept == kept(page)
    notes = [
        float(each)
        for each in page.locator("#panels > :first-child .tiles >> nth=1").locator("b").all_inner_texts()
    ]
    assert notes == sorted(notes, reverse=True) and notes[0] <= below


LABELS = ("it's", EVIL, 'say "red"', "", None)


@pytest.fixture(scope="module")
def labelled(made, tmp_path_factory):
    """The output with labels, true and false, and texts that are all different; and a page of half its rows."""
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "out").mkdir()
    for number, path in enumerate(sorted((made / "out").glob("*.parquet"))):
        table = pq.read_table(path)
        rows = range(number * ROWS, number * ROWS + len(table))
        more = {
            "label": pa.array([LABELS[row % 7 % 5] for row in rows], pa.string()),
            "select": pa.array([[True, False, None][row % 3] for row in rows], pa.bool_()),
            "motto": pa.array([f"text {row}" for row in rows], pa.string()),
            "long": pa.array([str(row % 2) * 400 for row in rows], pa.string()),
        }
        for name, values in more.items():
            table = table.append_column(name, values)
        pq.write_table(table, folder / "out" / path.name)
    make_report(folder / "out", folder / "whole.html")
    make_report(folder / "out", folder / "half.html", sample=30)
    return folder


def test_values_are_counted_shown_and_kept_as_pandas_does(labelled, open_page):
    frame = frame_of(labelled)
    assert [each["name"] for each in data_of(labelled / "whole.html")["categories"]] == ["label", "select"]
    for name in ("whole.html", "half.html"):
        for said in data_of(labelled / name)["categories"]:
            counts = frame[said["name"]].dropna().astype(str).str.lower().value_counts()
            found = dict(zip((each.lower() for each in said["values"]), said["counts"], strict=True))
            assert found == counts.to_dict() and said["counts"] == sorted(said["counts"], reverse=True)
            assert (said["nulls"], said["others"]) == (frame[said["name"]].isna().sum(), 0)
    page = open_page((labelled / "half.html").as_uri())
    by_key, chosen = dict(zip(frame["key"], frame["label"], strict=True)), set()
    first = page.locator("#values-list [aria-pressed=true]")
    first.click()  # none is chosen now
    assert page.input_value("#values-where") == "" and page.locator("#values-tiles .tile").count() == 0
    for label in LABELS:
        shown = {"": "(empty text)", None: "no value"}.get(label, label)
        page.locator("#values-list button", has=page.get_by_text(shown, exact=True)).click()
        chosen.add(label)
        want = sum((None if pd.isna(each) else each) in chosen for each in frame["label"])
        assert page.inner_text("#values-kept").startswith(f"{want} of 60 rows kept")
        where = page.input_value("#values-where")
        assert filter_output(labelled / "out", where=where).kept == want
        command = shlex.split(page.inner_text("#values-command"))
        assert command[-2:] == ["--where", where]
        keys = page.locator("#values-tiles .key").all_inner_texts()
        assert keys and {None if pd.isna(by_key[key]) else by_key[key] for key in keys} <= chosen
        if label in (
            "it's",
            EVIL,
        ):  # those with a picture, of the sample: the newly chosen ones are among them
            assert label in {by_key[key] for key in keys}
    page.select_option("#values-column", label="select")
    assert (
        page.input_value("#values-where") == 'not "select"'
    )  # as many as of the others, and the first by name
    page.get_by_role("button", name="true 20").click()
    assert page.input_value("#values-where") == 'not "select" or "select"'
    page.get_by_role("button", name="true 20").click()
    assert filter_output(labelled / "out", where='not "select"').kept == (frame["select"] == False).sum()  # noqa: E712
    page.select_option("#colour", label="label")
    assert "say" in page.inner_text("#legend")


def test_it_fits_a_telephone_and_a_dark_room_and_needs_no_mouse(made, open_page):
    page = open_page((made / "report.html").as_uri(), viewport=NARROW, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
    columns = (
        "document.querySelector('#columns .wide')"  # all of the table, not half of it with a bar to find
    )
    assert page.evaluate(f"{columns}.scrollWidth <= {columns}.clientWidth")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", ground))) < 60
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert {"column-0", "side-0", "value-0", "slider-0"} <= set(reached)


def test_both_sides_of_a_threshold_are_seen_at_once_on_a_laptop(made, open_page):
    page = open_page((made / "report.html").as_uri(), viewport=LAPTOP)
    for count in (28, 36):  # of one column, then of two
        page.locator("#overviews button").nth(1).click()
        header, result = page.locator("header").bounding_box(), page.locator("#result").bounding_box()
        top, bottom = header["height"], result["y"]
        parts = page.locator(
            "#panels select, #panels input, #panels .histogram, #panels .tile, #kept, #where"
        )
        boxes = [box for box in (each.bounding_box() for each in parts.all()) if box is not None]
        assert len(boxes) == count
        for box in boxes[:-2]:
            assert top <= box["y"] and box["y"] + box["height"] <= bottom
        assert all(box["y"] + box["height"] <= LAPTOP["height"] for box in boxes)
        page.evaluate("scrollTo(0, 0)")
        page.select_option("#column-1", label="order")
    page.evaluate("document.querySelector('h1').textContent = 'a long name '.repeat(20)")
    page.wait_for_timeout(100)  # for the bar's observer
    page.locator("#panels .histogram").first.evaluate("each => each.scrollIntoView()")
    bar, histogram = (page.locator(each).first.bounding_box() for each in ("header", "#panels .histogram"))
    assert bar["height"] > 64 and histogram["y"] >= bar["height"]


def test_names_on_the_map_lie_inside_it_and_not_on_one_another(made, open_page):
    page = open_page((made / "report.html").as_uri(), viewport=NARROW)
    page.wait_for_selector("#map-frame[data-ready=yes]")
    for _ in range(2):
        x, y, names, frame, widths = page.evaluate("""(() => {
            const page = Bokeh.documents.at(-1), { x_range, y_range } = page.roots()[0];
            const { x, y, text } = page.get_model_by_name("labels").data, frame = document.getElementById("map-frame");
            const pen = document.createElement("canvas").getContext("2d");
            pen.font = "bold 12px sans-serif";
            const scale = (range, pixels) => (at) => (at - range.start) * pixels / (range.end - range.start);
            return [x.map(scale(x_range, frame.clientWidth)), y.map(scale(y_range, frame.clientHeight)), text,
                frame.clientWidth, text.map((name) => pen.measureText(name).width)];
        })()""")
        assert names and names[0].startswith("blue")  # of the largest cluster
        for one in range(len(names)):
            assert x[one] >= widths[one] / 2 and x[one] + widths[one] / 2 <= frame
            for other in range(one):
                apart = abs(x[one] - x[other]) >= (widths[one] + widths[other]) / 2
                assert apart or abs(y[one] - y[other]) >= 12
        page.locator("#clusters button").first.click()


def test_of_a_sample_all_rows_are_counted_and_the_page_is_the_same_each_time(made, tmp_path, open_page):
    pages = [tmp_path / "one.html", tmp_path / "two.html"]
    for page in pages:
        assert make_report(made / "out", page, sample=25).sampled == 25
    data, other = (data_of(page) for page in pages)
    del data["map"]["plot"], other["map"]["plot"]  # Bokeh numbers its models anew each time
    assert data == other
    frame = frame_of(made)
    assert (data["rows"], data["sampled"], data["whole"]) == (60, 25, False)
    check_counts(data, frame)
    page = open_page(pages[0].as_uri())
    page.select_option("#column-0", label="brightness")
    page.fill("#value-0", "0.2")
    page.press("#value-0", "Enter")
    step = float(page.input_value("#value-0"))  # the nearest at which rows are counted
    assert kept(page) == (frame["brightness"].to_numpy(np.float32, na_value=np.nan) >= np.float32(step)).sum()
    page.select_option("#column-1", label="order")
    assert re.match(r"about \d+ of 60 rows kept .+ by a sample of 25", page.inner_text("#kept"))


def test_the_map_has_every_vector_and_clusters_that_add_up(made):
    data = data_of(made / "report.html")
    rows, clusters = unpacked(data["map"]["rows"]), unpacked(data["map"]["clusters"])
    keys = [data["keys"][row] for row in rows]
    frame = frame_of(made)
    assert keys == frame["key"][frame["image_embedding"].notna()].tolist()
    assert np.isfinite([unpacked(data["map"][axis]) for axis in "xy"]).all()
    sizes = np.bincount(clusters)
    assert (
        len(sizes) == len(data["map"]["names"])
        and list(sizes) == sorted(sizes, reverse=True)
        and sizes[-1] > 0
    )


def test_outliers_are_furthest_from_the_centre_of_their_cluster(made):
    data, frame = data_of(made / "report.html"), frame_of(made)
    clusters = unpacked(data["map"]["clusters"])
    good = frame[frame["image_embedding"].notna()]
    vectors = np.stack(good["image_embedding"].to_list()).astype(np.float64)
    centres = np.stack([vectors[clusters == each].mean(axis=0) for each in range(clusters.max() + 1)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    far = 1 - (vectors * centres[clusters]).sum(axis=1)
    section = (
        (made / "report.html").read_text().partition('<section id="outliers"')[2].partition("</section>")[0]
    )
    shown = [float(each) for each in re.findall(r"<figcaption><b>([\d.]+)</b>", section)]
    assert len(shown) == 24
    np.testing.assert_allclose(shown, np.sort(far)[::-1][:24], atol=6e-4)


def test_clusters_are_named_by_words_that_others_have_less_of():
    captions = ["a red wall at night", "the red wall", "red walls", "blue sea at night", "Blue sky", None]
    clusters = np.array([0, 0, 0, 1, 1, 1])
    assert names_of(captions, clusters, 2) == ["red, wall, walls", "blue, sea, sky"]  # night is in both
    assert names_of([None] * 6, clusters, 2) == ["cluster 1", "cluster 2"]


def test_the_map_zooms_shows_pictures_and_changes_colour(made, open_page):
    page = open_page((made / "report.html").as_uri())
    page.wait_for_selector("#map-frame[data-ready=yes]")
    look = """(() => {
        const { x_range, y_range } = Bokeh.documents.at(-1).roots()[0];
        return [x_range.start, x_range.end, y_range.start, y_range.end];
    })()"""
    left, right, low, high = before = page.evaluate(look)
    data = data_of(made / "report.html")
    rows, x, y = (unpacked(data["map"][name]) for name in ("rows", "x", "y"))
    page.locator("#map-frame").scroll_into_view_if_needed()
    box = page.locator("#map-frame").bounding_box()
    at = int(np.argmax(x))  # a point at the edge, that no other lies upon
    across = box["x"] + box["width"] * float((x[at] - left) / (right - left))
    down = box["y"] + box["height"] * float((high - y[at]) / (high - low))
    page.mouse.move(across - 3, down)
    page.mouse.move(across, down, steps=3)
    page.wait_for_selector("#map-card:not([hidden])")
    assert page.inner_text("#map-card .key") == data["keys"][rows[at]]
    assert page.locator("#map-card img").count() == 1
    page.click("#zoom-in")
    inside = page.evaluate(look)
    assert before[0] < inside[0] < inside[1] < before[1]
    page.focus("#map-frame")
    page.keyboard.press("0")
    np.testing.assert_allclose(page.evaluate(look), before)
    page.select_option("#colour", label="bytes")
    assert page.locator("#legend .scale").count() == 1
    colours = page.evaluate("Bokeh.documents.at(-1).get_model_by_name('points').data.colour.length")
    assert colours == 58
    page.locator("#clusters button").first.click()
    assert page.locator("#members .tile img").count() == min(
        24, int(page.inner_text("#clusters button .faint >> nth=0"))
    )


def test_images_are_labelled_by_looking(made, open_page, tmp_path):
    """By mouse and by keyboard; a table of them is saved, and a head fits it. They outlast the page."""
    page = open_page((made / "report.html").as_uri())
    tiles = page.locator("#label-tiles .tile")
    keys = [said.split(" in ")[0] for said in tiles.evaluate_all("all => all.map(each => each.title)")]
    assert len(keys) == tiles.count() == 24
    assert "0 yes, 0 no. At least 5 of each" in page.inner_text("#label-count")
    assert page.locator("#label-save").is_disabled()
    tiles.nth(0).click()
    tiles.nth(1).click(click_count=2)
    tiles.nth(2).click(click_count=3)  # none again
    tiles.nth(3).focus()
    for key in ("y", "n", "ArrowRight", "y", "ArrowLeft", "Delete"):
        page.keyboard.press(key)
    states = tiles.evaluate_all("all => all.map(each => each.dataset.label)")
    assert states == ["yes", "no", "", "yes", "no", "", "", *[""] * 17]
    assert tiles.nth(4).get_attribute("aria-label").endswith(": no")
    page.click("#label-next")
    assert page.inner_text("#label-place").startswith("25 to ")
    for number in range(12):
        tiles.nth(number).click(click_count=1 + number % 2)
    page.reload()
    assert "8 yes, 8 no." in page.inner_text("#label-count")
    page.fill("#label-name", "like it")
    assert "letters, digits" in page.inner_text("#label-count") and page.locator("#label-save").is_disabled()
    page.fill("#label-name", "Brightness")
    assert "There is a column Brightness" in page.inner_text("#label-count")
    page.fill("#label-name", "nice")
    # On a page with fewer rows nothing is forgotten of the others.
    make_report(made / "out", tmp_path / "few.html", sample=12)
    open_page((tmp_path / "few.html").as_uri())
    assert page.input_value("#label-name") == "nice" and page.locator("#label-tiles .tile").count() <= 12
    for _ in range(3):
        page.locator("#label-tiles .tile").first.click()
    open_page((made / "report.html").as_uri())
    with page.expect_download() as saved:
        page.click("#label-save")
    saved.value.save_as(tmp_path / "labels.csv")
    labels = pd.read_csv(tmp_path / "labels.csv", dtype={"key": str})
    assert (
        labels.columns.tolist() == ["key", "__url__", "nice"] and labels["nice"].sum() == 8 == len(labels) / 2
    )
    rows = frame_of(made).set_index(["key", "__url__"])
    assert rows.index.isin(pd.MultiIndex.from_frame(labels[["key", "__url__"]])).sum() == 16
    first = labels.set_index("key")["nice"]
    assert [first[key] for key in keys[:2]] == [True, False]
    command = shlex.split(page.inner_text("#label-fit"))
    assert command[:3] == ["curator-dask", "fit", str(made / "out")]
    command[command.index("labels.csv")] = str(tmp_path / "labels.csv")
    done = CliRunner().invoke(app, [*command[1:3], str(tmp_path / command[3]), *command[4:]])
    assert done.exit_code == 0 and "16 labelled rows" in done.output, done.output
    page.select_option("#label-order", label="brightness, the highest first")
    brightness = frame_of(made).set_index("key")["brightness"]
    values = [brightness[key] for key in tiles.locator(".key").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#label-forget")
    assert page.inner_text("#label-count").startswith("0 yes, 0 no.")


def test_keys_lead_from_page_to_page_of_labels(made, open_page):
    page = open_page((made / "report.html").as_uri())
    tiles, place = page.locator("#label-tiles .tile"), page.locator("#label-place")

    def focused():
        return page.evaluate(
            "[...document.querySelectorAll('#label-tiles .tile')].indexOf(document.activeElement)"
        )

    tiles.nth(0).focus()
    for key in ("ArrowLeft", "ArrowUp"):  # there is nothing before it
        page.keyboard.press(key)
        assert focused() == 0
    page.keyboard.press("ArrowDown")
    line = focused()
    tops = tiles.evaluate_all("all => all.map(each => each.offsetTop)")
    assert 1 < line < 24 and tops[line - 1] == tops[0] < tops[line] and tops[line] == tops[line + 1]
    page.keyboard.press("ArrowUp")
    assert focused() == 0
    tiles.nth(23).focus()
    page.keyboard.press("y")
    assert place.inner_text().startswith("25 to ") and focused() == 0
    page.keyboard.press("ArrowLeft")
    assert place.inner_text().startswith("1 to ") and focused() == 23
    assert tiles.nth(23).get_attribute("data-label") == "yes"
    assert [tiles.nth(number).get_attribute("aria-pressed") for number in (22, 23)] == ["false", "true"]
    page.keyboard.press("ArrowDown")
    assert place.inner_text().startswith("25 to ") and focused() == line - 1
    count = int(place.inner_text().split()[-1].replace(",", ""))
    while not page.locator("#label-next").is_disabled():
        page.click("#label-next")
    tiles.last.focus()
    page.keyboard.press("n")  # there is nothing behind it
    assert place.inner_text().endswith(f"to {count} of {count}") and focused() == tiles.count() - 1
    for name in ("label-fit", "label-score"):
        page.click(f"[data-copies={name}]")
        assert page.evaluate("getSelection().toString()") == page.inner_text(f"#{name}")
        page.wait_for_function(f"document.querySelector('[data-copies={name}]').textContent === 'Copied'")
    page.evaluate("localStorage.clear()")


def test_two_tabs_label_together(made, open_page, page):
    """What one says the other shows, saves and does not forget."""
    one = open_page((made / "report.html").as_uri())
    other = page.context.new_page()
    try:
        other.goto((made / "report.html").as_uri())
        tiles, theirs = (each.locator("#label-tiles .tile") for each in (one, other))
        tiles.nth(0).click()
        theirs.nth(1).click(click_count=2)
        for each in (one, other):
            each.wait_for_function(
                "document.getElementById('label-count').textContent.startsWith('1 yes, 1 no.')"
            )
        states = [
            each.evaluate_all("all => all.map(each => each.dataset.label)")[:3] for each in (tiles, theirs)
        ]
        assert states == [["yes", "no", ""]] * 2
        other.fill("#label-name", "nice")
        one.wait_for_function("document.getElementById('label-name').value === 'nice'")
        assert "--label nice" in one.inner_text("#label-fit")
        other.once("dialog", lambda dialog: dialog.accept())
        other.click("#label-forget")
        one.wait_for_function("document.getElementById('label-count').textContent.startsWith('0 yes, 0 no.')")
        assert tiles.nth(0).get_attribute("data-label") == ""
    finally:
        other.evaluate("localStorage.clear()")
        other.close()


def test_duplicates_are_shown_by_groups_the_most_doubtful_first(made):
    table = pq.read_table(made / "duplicates" / "duplicates.parquet").to_pandas()
    section = (
        (made / "report.html").read_text().partition('<section id="duplicates"')[2].partition("</section>")[0]
    )
    assert (
        f"{(~table['kept']).sum()} rows have a better twin, in {table['group'].nunique()} groups" in section
    )
    doubtful, largest = (part.split('class="group"')[1:] for part in section.split("<h3>")[1:])
    least = table.groupby("group")["similarity"].min().sort_values()
    shown = [min(map(float, re.findall(r"<b>(0\.\d+|1\.0+)</b>", group))) for group in doubtful]
    np.testing.assert_allclose(shown, least.iloc[:12], atol=6e-5)
    sizes = table.groupby("group").size().sort_values(ascending=False)
    assert [int(re.search(r"(\d+) rows", group)[1]) for group in largest] == sizes.iloc[:12].tolist()
    for group in (*doubtful, *largest):
        assert (
            group.count('class="tile kept"') == 1 and group.index("kept") < group.index("<b>0")
            if "<b>0" in group
            else True
        )
    pictures = data_of(made / "report.html")["pictures"]
    for number in re.findall(r'data-picture="(-?\d+)"', section):
        assert pictures[int(number)].startswith("data:image/webp")


def test_another_program_gets_rows_with_vectors_places_and_pictures(made, tmp_path):
    """embedding-atlas fails on null and NaN vectors, and takes lists of one length, x and y, images as structs."""
    shutil.copytree(made / "out", tmp_path / "out")
    table = pq.read_table(tmp_path / "out/00001.parquet")
    at, column = table.column_names.index("image_embedding"), table["image_embedding"].to_pylist()
    column[4][0] = float("nan")
    broken = table.set_column(at, "image_embedding", pa.array(column, table.schema.field(at).type))
    pq.write_table(
        broken.append_column("image", pa.array(["theirs"] * len(table))), tmp_path / "out/00001.parquet"
    )
    arguments = [
        *map(str, ("report", tmp_path / "out", tmp_path / "rows.parquet")),
        "--open-in",
        "embedding-atlas",
    ]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    written, frame = pq.read_table(tmp_path / "rows.parquet"), pq.read_table(tmp_path / "out")
    good = [
        row
        for row, each in enumerate(frame["image_embedding"].to_pylist())
        if each and np.isfinite(each).all()
    ]
    assert len(good) == 57 and "57 rows; 3 without a vector are left out" in done.output
    for name in ("key", "phash", "order"):
        assert written[name].equals(frame[name].take(good))
    assert written["image"].to_pylist().count("theirs") == 19
    assert written.column_names[:4] == ["image_", "key", "caption", "cluster"]  # as the program shows them
    vectors = np.array(frame["image_embedding"].take(good).to_pylist(), np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    apart = 1 - unit @ unit.T
    np.fill_diagonal(apart, np.inf)
    for row, near in enumerate(written["neighbors"].to_pylist()):
        np.testing.assert_allclose(apart[row, near["ids"]], np.sort(apart[row])[:15], atol=1e-6)
        np.testing.assert_allclose(near["distances"], apart[row, near["ids"]], atol=1e-6)
        assert len(set(near["ids"])) == 15
    assert np.isfinite([written["projection_x"].to_numpy(), written["projection_y"].to_numpy()]).all()
    pictures = written["image_"].to_pylist()  # the name was taken
    assert [each for each, picture in enumerate(pictures) if picture is None] == []
    with Image.open(io.BytesIO(pictures[written["key"].to_pylist().index("00006")]["bytes"])) as image:
        assert image.size == (64, 128)
    said = "--x projection_x --y projection_y --neighbors neighbors --text caption --image image_"
    assert f"embedding-atlas {tmp_path / 'rows.parquet'} {said}" in done.output.replace("\n", " ")
    assert written.schema.metadata is None  # it is no output: a run would take it for its own
    few = make_atlas(made / "out", tmp_path / "few.parquet", sample=9)
    assert few.written + few.left_out == 9 and few.command[2:4] == [
        "--vector",
        "image_embedding",
    ]  # too few for a map
    left = pq.read_table(tmp_path / "few.parquet")
    whole = dict(zip(frame["key"].to_pylist(), frame["image_embedding"].to_pylist(), strict=True))
    assert left["image_embedding"].to_pylist() == [whole[key] for key in left["key"].to_pylist()]


@pytest.mark.parametrize(
    ("target", "error", "said"),
    [
        ("rows.html", ConfigError, "ends with .parquet"),
        ("rows.parquet", OutputError, "none of 3 rows has a vector"),
    ],
)
def test_what_another_program_cannot_take_is_said(tmp_path, target, error, said):
    vectors = pa.nulls(3, pa.list_(pa.float32()))
    pq.write_table(pa.table({"key": ["a", "b", "c"], "image_embedding": vectors}), tmp_path / "0.parquet")
    with pytest.raises(error, match=said):
        make_atlas(tmp_path, tmp_path / target)
    assert not (tmp_path / target).exists()


def test_duplicates_of_other_shards_are_refused(made, tmp_path):
    table = pq.read_table(made / "duplicates" / "duplicates.parquet")
    moved = table.set_column(1, "__url__", pa.array(["/elsewhere/0.tar"] * len(table)))
    pq.write_table(moved, tmp_path / "duplicates.parquet")
    with pytest.raises(OutputError, match=r"is of other shards, /elsewhere/0\.tar for example"):
        make_report(made / "out", tmp_path / "page.html", duplicates=tmp_path)


def test_shards_that_are_gone_cost_their_pictures_alone(made, tmp_path):
    for name in ("00000", "00001"):
        table = pq.read_table(made / "out" / f"{name}.parquet")
        moved = pa.array([f"/nowhere/{name}.tar"] * len(table))
        table = table.set_column(table.column_names.index("__url__"), "__url__", moved)
        pq.write_table(table, tmp_path / f"{name}.parquet")
    summary = make_report(tmp_path, tmp_path / "page.html")
    assert summary.pictures == 0  # grey tiles with the reason are none
    assert "/nowhere/00000.tar" in picture_of(data_of(tmp_path / "page.html"), "00001")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (
            {"column": "other"},
            OutputError,
            r"no column 'other' of vectors; those it has are \['image_embedding'\]",
        ),
        ({"page": "nowhere/page.html"}, ConfigError, "in a folder that is there"),
        ({"path": "data/nothing"}, OutputError, "no Parquet file is there, nor such a folder"),
        ({"sample": 0}, ConfigError, "sample"),
    ],
)
def test_what_cannot_be_told_is_said(made, options, error, said):
    arguments = {"path": made / "out", "page": made / "other.html", **options}
    path, page = (made / arguments.pop(name) for name in ("path", "page"))
    with pytest.raises(error, match=said):
        make_report(path, page, **arguments)
    assert not page.exists()


def test_a_file_that_is_no_summary_is_refused(made):
    other = made / "data" / "00000.parquet"
    done = CliRunner().invoke(
        app, ["report", str(made / "out"), str(made / "x.html"), "--summary", str(other)]
    )
    assert done.exit_code == 2


def test_steps_are_short_numbers_between_the_values():
    values = np.array([0.1234567, 0.1299999, 5.0, 5.25, 1234.5])
    assert shortest_between(values[:-1], values[1:]).tolist() == [0.129, 5.0, 5.2, 1000.0]
    negative = np.array([-7.31, -7.29, -0.004, 0.2])
    assert shortest_between(negative[:-1], negative[1:]).tolist() == [-7.3, -1.0, 0.0]
    many = np.random.default_rng(0).normal(0.3, 1e-3, 10_000)
    steps = steps_of(many, many.min(), many.max(), whole=False)
    assert 300 < len(steps) <= 401 and np.mean([len(str(step)) <= 7 for step in steps]) > 0.8


def test_workers_give_the_same_page(made, client, tmp_path):
    make_report(made / "out", tmp_path / "page.html", duplicates=made / "duplicates")
    here, there = data_of(made / "report.html"), data_of(tmp_path / "page.html")
    del here["map"]["plot"], there["map"]["plot"]
    assert there == here


def test_rows_that_are_filtered_and_set_aside_are_counted(tmp_path, in_this_process):
    (tmp_path / "data").mkdir()
    write_photographs(tmp_path / "data")
    dataset = ImageTextPairDataset.from_webdataset(str(tmp_path / "data" / "00000.tar"), id_col="key")
    dataset = TimmImageEmbedder("test_vit", pretrained=False)(dataset.filter('"order" < 3'))
    dataset.save_metadata(tmp_path / "out", drop_failed=True)
    make_report(tmp_path / "out", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert flow_of(text) == [
        ("rows in", "20"),
        ("left out by filters", "5"),
        ("failed, set aside", "1"),
        ("rows of the output", "14"),
        ("without a vector", "0"),
        ("with a vector", "14"),
    ]
    assert "why: see failures" not in text  # there are none to see the reasons of
    assert re.search(
        r'<div class="image none">missing: .+?</div>\s*<figcaption><span class="key">00008', text
    )


def test_keys_that_are_numbers_find_their_pictures_and_a_page_has_its_limit(tmp_path, monkeypatch):
    members = [(f"{number:06d}.jpg", encoded(number)) for number in range(30)]
    write_tar(tmp_path / "0.tar", members)
    table = pa.table(
        {"key": range(30), "__url__": [str(tmp_path / "0.tar")] * 30, "score": np.linspace(0, 1, 30)}
    )
    pq.write_table(table, tmp_path / "0.parquet")
    whole = make_report(tmp_path, tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    assert all(picture.startswith("data:image/webp") for picture in data["pictures"]) and whole.pictures == 30
    assert (
        data["map"] is None
        and "No map: 0 rows of the sample with a vector" in (tmp_path / "page.html").read_text()
    )
    monkeypatch.setattr(making, "LIMIT", whole.size - 5000)
    less = make_report(tmp_path, tmp_path / "page.html")
    assert 0 < less.pictures < 30 and less.size <= whole.size - 5000


def test_what_has_no_threshold_and_vectors_that_are_not_finite_are_said(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 4)).astype(np.float32)
    vectors[3, 1], vectors[4, 0] = np.nan, np.inf
    column = pa.array(
        [None if row == 9 else list(each) for row, each in enumerate(vectors)], pa.list_(pa.float32())
    )
    numbers = {f"score_{each:02d}": rng.normal(size=40) for each in range(26)}
    odd = {"seed": [1 << 60, *range(39)], "same": [7] * 40, "none": pa.nulls(40, pa.float32())}
    table = pa.table({"key": range(40), **odd, **numbers, "image_embedding": column})
    pq.write_table(table, tmp_path / "0.parquet")
    make_report(tmp_path, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert flow_of(text)[2:] == [
        ("without a vector", "1"),
        ("vector not finite", "2"),
        ("with a vector", "37"),
    ]
    said = dict(re.findall(r'<th scope="row">(\w+)</th>.+<td>no threshold: (.+)</td></tr>', text))
    assert said == {
        "seed": "values beyond 2⁵³, as hashes and ids have",
        "same": "one value alone",
        "none": "no value",
        "score_24": "the page takes 24 columns",
        "score_25": "the page takes 24 columns",
    }
    monkeypatch.setattr(making, "LIMIT", len(text.encode()) + 500)
    make_report(tmp_path, tmp_path / "page.html")
    less = (tmp_path / "page.html").read_text()
    assert 0 < len(data_of(tmp_path / "page.html")["measures"]) < 24 and "the page has no room for it" in less


def test_an_output_without_rows_has_a_page_that_says_so(tmp_path, in_this_process, open_page):
    (tmp_path / "data").mkdir()
    write_photographs(tmp_path / "data")
    dataset = ImageTextPairDataset.from_webdataset(str(tmp_path / "data" / "00000.tar"), id_col="key")
    dataset = TimmImageEmbedder("test_vit", pretrained=False)(dataset.filter('"order" > 9'))
    dataset.save_metadata(tmp_path / "out")
    assert make_report(tmp_path / "out", tmp_path / "page.html").rows == 0
    page = open_page((tmp_path / "page.html").as_uri())
    assert page.inner_text(".note") == "This output has no rows: none of those that went in is left."
    assert flow_of((tmp_path / "page.html").read_text())[:2] == [
        ("rows in", "20"),
        ("left out by filters", "20"),
    ]


def test_of_what_curate_wrote_the_embeddings_and_their_duplicates_are_shown(made, tmp_path):
    """Beside them lie other tables, whose rows are none of the dataset's."""
    for name in ("embeddings", "passing"):
        shutil.copytree(made / "out", tmp_path / "all" / name)
    shutil.copytree(made / "duplicates", tmp_path / "all/duplicates")
    done = make_report(tmp_path / "all", tmp_path / "curated.html")
    assert (done.rows, done.pictures) == (SHARDS * ROWS, SHARDS * ROWS - 2)  # one is cut, one missing
    assert 'id="duplicates"' in (tmp_path / "curated.html").read_text()
    with pytest.raises(OutputError, match="is what dedup wrote: give the folder that embed wrote"):
        make_report(tmp_path / "all/duplicates", tmp_path / "wrong.html")


def test_a_folder_of_curate_is_told_by_all_that_take_an_output(made, tmp_path):
    """Else they stumble over the tables that lie in it, one in this way and one in that."""
    folder = tmp_path / "all"
    for name in ("embeddings", "passing"):
        shutil.copytree(made / "out", folder / name)
    shutil.copytree(made / "duplicates", folder / "duplicates")
    (tmp_path / "table.csv").write_text("key,more\n00000,1\n")
    for ask in (
        lambda: filter_output(folder, where='"order" > 1'),
        lambda: score_output(folder, [ReferenceSimilarity(made / "out", "like")]),
        lambda: fit_head(folder, "order"),
        lambda: similar_to_key(folder, "00000"),
        lambda: SemanticDeduplication(eps=0.1)(folder).save(tmp_path / "found"),
        lambda: balance_output(folder, tmp_path / "table.csv", concept_column="key"),
        lambda: join_output(folder, tmp_path / "table.csv"),
        lambda: TimmImageEmbedder("test_vit", pretrained=False).retry(folder),
        lambda: export_output(folder, tmp_path / "tars"),
    ):
        with pytest.raises(
            OutputError, match=r"all: is a folder of curate, .*: give \S+/all/embeddings, or "
        ):
            ask()
    assert {each.name for each in tmp_path.iterdir()} == {"all", "table.csv"}
    assert {each.name for each in folder.iterdir()} == {"embeddings", "passing", "duplicates"}


def test_rows_of_an_export_find_their_images_in_the_tars_beside_them(made, tmp_path, said):
    """By the keys that they have there, of which the other split has the same."""
    options = ExportOptions(splits={"val": 0.4}, keys="sequential", samples_per_shard=15)
    with dask.config.set(scheduler="sync"):
        kept = export_output(made / "out", tmp_path / "tars", options).kept
    assert kept == SHARDS * ROWS - 1  # one was missing
    for folder in (tmp_path / "tars", tmp_path / "tars" / "val"):
        summary = make_report(folder, tmp_path / "page.html")
        assert summary.pictures == summary.rows - (folder.name == "tars")  # another is cut
        assert "no pictures" not in said.text
    key = pq.read_table(tmp_path / "tars/val/00000.parquet")["key"][0].as_py()
    hits = similar_to_key(tmp_path / "tars", key, shard="val/00000.tar", top=9)
    for hit in hits:
        number = 5 if hit.caption == EVIL else int(hit.caption.rpartition(" ")[2])
        with tarfile.open(hit.url) as tar:
            assert tar.extractfile(f"{hit.key}.jpg").read() == encoded(number, turned=number == 6)
    assert {hit.url.rpartition("/")[0] for hit in hits} == {f"{tmp_path}/tars/train", f"{tmp_path}/tars/val"}
    for tar in tmp_path.glob("tars/*/*.tar"):
        tar.unlink()
    assert make_report(tmp_path / "tars", tmp_path / "page.html").pictures == 0
    assert "tars: no pictures: its rows do not say in which shards" in said.text


def test_rows_of_an_export_to_parquet_find_their_images_in_their_own_files(made, tmp_path, said):
    """Of every command that shows pictures."""
    options = ExportOptions(format="parquet", splits={"val": 0.4}, samples_per_shard=15)
    with dask.config.set(scheduler="sync"):
        kept = export_output(made / "out", tmp_path / "tables", options).kept
        SemanticDeduplication(eps=0.01)(tmp_path / "tables").save(tmp_path / "found")
    summary = make_report(tmp_path / "tables", tmp_path / "page.html", duplicates=tmp_path / "found")
    assert summary.pictures == kept - 1 == summary.rows - 1  # one is cut
    assert "no pictures" not in said.text
    labels = label_page(tmp_path / "tables", tmp_path / "label.html", "good", number=30, eps=1e-6)
    assert sum(labels.shown.values()) == 30
    hits = similar_to_key(tmp_path / "tables", "00009", top=kept)
    for hit in hits:
        number = 5 if hit.caption == EVIL else int(hit.caption.rpartition(" ")[2])
        ((_, image),) = read_images([hit.key], [hit.url], "key")
        whole = encoded(number, turned=number == 6)
        assert bytes(image) == (whole[: len(whole) // 2] if number == 7 else whole)
    groups = find_groups(str(tmp_path / "found"), 3)
    twins = [row for group in groups for row in group.rows]
    tiles = read_thumbnails([row["id"] for row in twins], [row["__url__"] for row in twins], 64)
    assert twins and all(isinstance(tile, Image.Image) for _, tile in tiles)


def test_what_a_hash_has_found_is_said_and_its_cosine_is_no_doubt(made, tmp_path):
    SemanticDeduplication(eps=1e-6, exact={"phash": 8})(made / "out").save(tmp_path / "found")
    table = pq.read_table(tmp_path / "found").to_pandas()
    by_hash = int((table["found_by"] == "phash").sum())
    assert by_hash
    twins = read_twins(str(tmp_path / "found"), open_folder(str(made / "out"), None, None))
    assert twins.by_hash == {"phash": by_hash}
    assert {twin.by for twin in twins.shown} == {None, "phash"}
    assert all("by phash" in twin.said for twin in twins.shown if twin.by)
    by = table[~table["kept"]].groupby("group")["found_by"]
    assert sum(np.isnan(group.least) for group in twins.doubtful) == min(
        12, (by.agg(lambda names: {*names} == {"phash"})).sum()
    )


@pytest.mark.parametrize(
    "said",
    [
        {"steps": [1]},
        {"steps": {"embeddings": None}},
        {"seconds": "x", "images_per_second": 1.0},
        {"seconds": 1, "images_per_second": 1, "versions": ["1"]},
    ],
)
def test_what_is_no_summary_is_told(tmp_path, said):
    (tmp_path / "run.json").write_text(json.dumps(said))
    with pytest.raises(ConfigError, match=r"run\.json: is no summary of a run"):
        making.read_run(str(tmp_path / "run.json"))
