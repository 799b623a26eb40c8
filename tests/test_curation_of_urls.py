"""One command from a table of URLs to the shards that are trained on."""

from __future__ import annotations

import json
import tarfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_servers import ImageServer, picture_of

from curator_dask.curation import Recipe, curate
from curator_dask.errors import ConfigError, NoColumnError, OutputError, ShardError

pytestmark = pytest.mark.usefixtures("in_this_process")

GONE = (3, 9)  # no such image
CUT = 5  # its file is cut short
COPY = {7: 1}  # the same image by another URL


@pytest.fixture
def server():
    with ImageServer() as server:
        yield server


def write_urls(folder, name, server, numbers):
    urls = []
    for number in numbers:
        path = f"n/{number}.jpg" if number not in COPY else f"n/{COPY[number]}.jpg?again"
        urls.append(server.url("status/404" if number in GONE else "cut/1" if number == CUT else path))
    folder.mkdir(exist_ok=True)
    captions = [f"caption of {number}" for number in numbers]
    table = {"URL": urls, "TEXT": captions, "number": pa.array(numbers, pa.int64())}
    pq.write_table(pa.table(table), folder / name)


RECIPE = """
fetch: {{table: {table}, url_column: URL, caption_column: TEXT, rows_per_shard: 4, allow_private: true, retries: 0}}
statistics: [width]
prefix: my_
where: number != 2
duplicates: {{exact: sha256}}
export: {{samples_per_shard: 3}}
"""


def exported(out):
    """By the caption's number, the bytes of the image; by tarfile alone."""
    found, captions = {}, {}
    for path in sorted((out / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                data = tar.extractfile(member).read()
                if suffix == "txt":
                    captions[key] = int(data.decode().rpartition(" ")[2])
                elif suffix != "json":
                    found[key] = data
    return {captions[key]: data for key, data in found.items()}


def expected(numbers):
    return {each: picture_of(each) for each in numbers if each not in {2, CUT, *GONE, *COPY}}


def test_one_command_from_a_table_of_urls_to_shards_and_on_when_it_has_grown(server, tmp_path):
    table, images, out = tmp_path / "urls", tmp_path / "images", tmp_path / "out"
    write_urls(table, "0.parquet", server, range(10))  # the third shard is not full
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(table=table))
    recipe = Recipe.read(tmp_path / "recipe.yaml")
    said = curate(images, out, recipe).to_dict()  # as the command does, which other tests run
    assert exported(out) == expected(range(10))
    assert said["steps"]["fetched"]["rows"] == said["rows"] == 10
    assert (said["failed"], said["unfetched"], said["filtered"], said["duplicates"]) == (3, 3, 1, 1)
    assert said["rows"] == sum(
        said[name] for name in ("failed", "filtered", "unbalanced", "duplicates", "missing", "kept")
    )
    json.dumps(said)
    asked = Counter(server.asked)
    again = curate(images, out, recipe)
    assert server.asked == asked and again.steps["shards"].written == 0 and again.kept == said["kept"]
    # It has grown: the shard that was not full is fetched anew, and no other; tars that are there stay.
    before = {path: path.read_bytes() for path in sorted((out / "shards").glob("*.tar"))}
    write_urls(table, "1.parquet", server, range(10, 15))
    with pytest.raises(OutputError, match=r"that are not fetched yet.*append=True.*tars go$"):
        curate(images, out, recipe)
    assert server.asked == asked
    summary = curate(images, out, recipe, append=True)
    assert {path: path.read_bytes() for path in before} == before
    assert exported(out) == expected(range(15))
    assert (summary.rows, summary.failed, summary.unfetched, summary.kept) == (15, 3, 3, 10)
    assert summary.earlier == said["kept"] and "3 (20.0%), 3 of them not fetched" in str(summary)
    new = server.asked - asked
    assert {*new} == {"n/8.jpg", "status/404", *(f"n/{number}.jpg" for number in range(10, 15))}


def test_a_table_that_has_lost_rows_is_begun_anew_where_all_may_be_replaced(server, tmp_path):
    table, images, out = tmp_path / "urls", tmp_path / "images", tmp_path / "out"
    write_urls(table, "0.parquet", server, range(10))
    recipe = RECIPE.format(table=table)
    (tmp_path / "recipe.yaml").write_text(recipe)
    curate(images, out, Recipe.read(tmp_path / "recipe.yaml"))
    write_urls(table, "0.parquet", server, range(6))  # its third shard goes
    (tmp_path / "recipe.yaml").write_text(recipe.replace("{table", "{overwrite: true, table"))
    summary = curate(images, out, Recipe.read(tmp_path / "recipe.yaml"), overwrite=True)
    assert (summary.rows, summary.complete) == (6, True) and exported(out) == expected(range(6))
    assert {path.stem for path in (out / "embeddings").iterdir()} == {"00000", "00001"}


def test_what_cannot_be_done_later_is_told_before_an_image_is_asked_for(server, tmp_path, caplog):
    caplog.set_level("INFO", "curator_dask")
    write_urls(tmp_path / "urls", "0.parquet", server, range(6))
    fetch = {"table": str(tmp_path / "urls"), "url_column": "URL", "allow_private": True, "retries": 0}
    images, out = tmp_path / "images", tmp_path / "out"
    for error, said, recipe in (
        (NoColumnError, "colour", {"where": "colour = 'red'"}),
        (ConfigError, "width", {"statistics": ["width"]}),  # which fetched shards have
        (ConfigError, "beauty", {"top": {"beauty": 0.5}}),
    ):
        with pytest.raises(error, match=said):
            curate(images, out, Recipe(fetch=fetch, **recipe))
        assert not server.asked and not [*images.glob("*.tar")]
    assert "found 1 shard" not in caplog.text  # that is of nobody's
    for wrong, said in (
        ({}, "expected a table of URLs"),
        ({"table": "a.csv", "min_good": 2}, "a share from 0 to 1"),
        ({"table": "a.csv", "per_hots": 2}, "per_host"),
        ({"table": "a.csv", "append": True}, "there is no argument 'append'"),
        ({"table": "a.csv", "timeout": 0}, "timeout"),
        ("urls.csv", "fetch: expected {table"),
    ):
        with pytest.raises(ConfigError, match=said):
            Recipe(fetch=wrong)
    with pytest.raises(ConfigError, match="leave out id_col"):
        Recipe(fetch={"table": "a.csv"}, id_col="id")
    folders = (
        (images, images),
        (images, images / "out"),
        (out / "shards", out),
        (images, tmp_path / "images.fetch"),
    )
    for at, output in folders:
        with pytest.raises(OutputError, match=r"is read from|who reads the outer of this folder"):
            curate(at, output, Recipe(fetch=fetch))
        assert not server.asked and not output.exists()
    # Too few images end it before anything else is done; and what is there goes on from there.
    with pytest.raises(ShardError, match=r"4 of 6 rows have an image \(66.7%, min_good is 90.0%\)"):
        curate(images, out, Recipe(fetch={**fetch, "min_good": 0.9}))
    assert not (out / "embeddings").exists()
    # Without a model or statistics it is known, too, what was not fetched.
    summary = curate(images, out, Recipe(fetch={**fetch, "min_good": 0.5}))
    assert (summary.rows, summary.failed, summary.unfetched, summary.kept) == (6, 2, 2, 4)
