"""Curation to a store: on a real S3 server, beside the same on a disk."""

from __future__ import annotations

import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from colours import write_tar
from image_servers import ImageServer
from s3 import BUCKET, Fault, FaultyServer, options, s3_server
from test_curation import picture
from test_curation_of_urls import RECIPE as OF_URLS
from test_curation_of_urls import expected, exported, write_urls

from curator_dask import storage
from curator_dask.curation import Recipe, curate
from curator_dask.dedup import running
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.parquet import open_parquet, read_footer

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def server():
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def store(server):
    return fsspec.filesystem("s3", use_listings_cache=False, **options(server))


def shard(folder, number):
    """A broken image, a narrow one, and of all shards but the first one that is another's of the first."""
    members = []
    for sample in range(6):
        key = f"{number:03}{sample:03}"
        image = picture(1000 * number + sample)
        if sample == 1:
            image = b"no image"
        elif sample == 2:
            image = picture(5, width=30)
        elif sample == 3 and number:
            image = picture(4, quality=90)
        members += [(f"{key}.jpg", image), (f"{key}.txt", f"caption {sample % 2}".encode())]
    write_tar(folder / f"{number:05}.tar", members)


RECIPE = {
    "statistics": ["width", "phash"],
    "prefix": "image_",
    "same_captions": True,
    "where": "image_width >= 40 and text_same_captions >= 1",
    "duplicates": {"exact": {"image_phash": 4}, "keep": ["key"]},
    "export": {"samples_per_shard": 4, "splits": {"val": 0.3}, "card": True},
}
COUNTS = ("rows", "failed", "filtered", "unbalanced", "duplicates", "missing", "kept", "earlier", "stay")


def counts(summary):
    return [getattr(summary, name) for name in COUNTS]


def check_same(store, place, folder, urls=None):
    """The store has the files of the folder, tars and what tells of them to the byte, rows but for the URLs in them."""
    there = {name.removeprefix(f"{place}/") for name in store.find(place)}
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == {name for name in here if ".work/" not in name}
    for name in sorted(there):
        if name.startswith("shards/") and not name.endswith((".parquet", ".md")):
            assert store.cat_file(f"{place}/{name}") == (folder / name).read_bytes(), name
        elif name.endswith(".parquet"):
            with store.open(f"{place}/{name}") as file:
                table = pq.read_table(file)
            for at, column in enumerate(table.schema if urls else ()):
                if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                    table = table.set_column(at, column, pc.replace_substring(table.column(at), *urls))
            assert table.equals(pq.read_table(folder / name)), name


def states(store, place):
    """Of all but the table of duplicates, which is written each time."""
    found = store.find(place, detail=True)
    return {
        name: (each["ETag"], each["LastModified"])
        for name, each in found.items()
        if not name.endswith("/duplicates.parquet")
    }


def test_it_goes_on_after_an_interrupt_and_has_what_a_disk_would_have(tmp_path, server, store, monkeypatch):
    data, near, far, work = tmp_path / "data", tmp_path / "near", f"s3://{BUCKET}/a far/", tmp_path / "work"
    for number in (0, 1):
        shard(data, number)
    given = {"output_storage_options": options(server), "work": work}
    local = curate(data, near, Recipe(**RECIPE))
    find, interrupted = running.Deduplication._find, []

    def once(*arguments):
        if not interrupted:
            interrupted.append(1)
            raise KeyboardInterrupt
        return find(*arguments)

    monkeypatch.setattr(running.Deduplication, "_find", once)
    with pytest.raises(KeyboardInterrupt):
        curate(data, far, Recipe(**RECIPE), **given)
    assert not any("/duplicates" in name or "/shards" in name for name in store.find(f"{BUCKET}/a far"))
    done = curate(data, far, Recipe(**RECIPE), **given)
    assert counts(done) == counts(local) == [12, 2, 2, 0, 1, 0, 7, 0, 0]
    steps = done.steps
    assert (
        steps["embeddings"].written,
        steps["passing"].output.written,
        steps["duplicates"].made["scan"],
    ) == (0, 0, 0)
    check_same(store, f"{BUCKET}/a far", near)
    before = states(store, f"{BUCKET}/a far")
    server.log.clear()
    again = curate(data, far, Recipe(**RECIPE), **given)
    assert len(server.log) < 200  # they were twice as many; each takes a moment
    assert counts(again) == counts(local) and states(store, f"{BUCKET}/a far") == before


def test_s3_is_asked_once_for_what_takes_one_request(server, store):
    place, there = f"s3://{BUCKET}/asked", options(server)
    random = np.random.default_rng(0)
    small, large = pa.table({"a": [1, 2]}), pa.table({"a": [random.bytes(100_000) for _ in range(3)]})
    for name, table in (("small", small), ("large", large)):
        with store.open(f"{BUCKET}/asked/{name}.parquet", "wb") as file:
            pq.write_table(table, file)
    store.pipe_file(f"{BUCKET}/asked/empty.json", b"")

    def asked(look):
        server.log.clear()
        return look(), [method for _, method, _ in server.log]

    def read(name):
        with open_parquet(f"{place}/{name}.parquet", there) as file:
            return file.read()

    assert asked(lambda: read("small")) == (small, ["GET"])
    found, requests = asked(lambda: read("large"))
    assert found == large and requests.count("HEAD") == 1
    assert asked(lambda: [*storage.walk(f"{place}/no", there)]) == ([], ["GET"])
    assert asked(lambda: sorted(storage.walk(place, there))) == (
        ["empty.json", "large.parquet", "small.parquet"],
        ["GET"],
    )
    data, requests = asked(lambda: storage.read_bytes(f"{place}/large.parquet", there))
    assert data == store.cat_file(f"{BUCKET}/asked/large.parquet") and requests == ["GET"]
    assert storage.read_bytes(f"{place}/empty.json", there) == b""
    assert read_footer(f"{place}/empty.json", there).fault
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{place}/no.json", there)
    with pytest.raises(FileNotFoundError):
        read("no")


@contextmanager
def another(server):
    """A second way to the same store, which refuses what is below ``in``; the first one writes nothing."""
    other = FaultyServer(server.port)
    thread = threading.Thread(target=other.serve_forever, daemon=True)
    thread.start()
    other.faults = [Fault("403", method, "/bucket/in/") for method in ("GET", "HEAD")]
    server.faults = [Fault("403", method) for method in ("PUT", "POST", "DELETE")]
    try:
        yield other
    finally:
        server.faults = []
        other.shutdown()
        other.server_close()


def test_shards_of_another_store_that_grow(tmp_path, server, store):
    data, near, far, work = tmp_path / "data", tmp_path / "near", f"s3://{BUCKET}/far", tmp_path / "work"
    place, names = f"{BUCKET}/far", ("00000.tar", "00001.tar")
    for number in (0, 1, 2):
        shard(tmp_path / "all", number)

    def grow(name):
        data.mkdir(exist_ok=True)
        shutil.copy2(tmp_path / "all" / name, data / name)
        store.put(str(data / name), f"{BUCKET}/in/{name}")

    for name in names:
        grow(name)
    with another(server) as other:
        given = {"storage_options": options(server), "output_storage_options": options(other), "work": work}

        def both(recipe=RECIPE, **how):
            local = curate(data, near, Recipe(**recipe), **how)
            found = curate(f"s3://{BUCKET}/in/", far, Recipe(**recipe), **given, **how)
            assert counts(found) == counts(local)
            check_same(store, place, near, (f"s3://{BUCKET}/in", str(data)))
            return found

        first = both()
        tars = {name: store.cat_file(name) for name in store.find(f"{place}/shards") if name.endswith(".tar")}
        server.faults, faults = [], server.faults
        grow("00002.tar")
        server.faults = faults
        before = states(store, place)
        for recipe, how, message in (
            (RECIPE, {}, "s3://bucket/far/shards: is there, and was made without embeddings/00002.parquet"),
            (
                {**RECIPE, "where": "image_width > 50"},
                {},
                "s3://bucket/far/shards: is there, and .*chooses other rows",
            ),
            (
                {**RECIPE, "where": "image_width > 50"},
                {"append": True},
                "chooses other rows; nothing was replaced",
            ),
        ):
            with pytest.raises(OutputError, match=message):
                curate(f"s3://{BUCKET}/in", far, Recipe(**recipe), **given, **how)
            assert states(store, place) == before
        grown = both(append=True)
        assert grown.earlier == first.kept and grown.kept > first.kept
        assert all(store.cat_file(name) == tar for name, tar in tars.items())
        # Another recipe, without duplicates, and with what is counted of all captions.
        concepts = tmp_path / "concepts.txt"
        concepts.write_text("caption 0\ncaption 1")
        balance = {"balance": {"concepts": str(concepts), "most": 4}, "duplicates": None}
        given.pop("work")
        replaced = both({**RECIPE, **balance}, overwrite=True)
        assert replaced.unbalanced > 0 and not store.exists(f"{place}/duplicates")


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, server, store):
    data, place = tmp_path / "data", f"s3://{BUCKET}/refused"
    shard(data, 0)
    recipe, where = Recipe(**RECIPE), {"output_storage_options": options(server)}
    for work, kind, message in (
        (
            Path(f"s3://{BUCKET}/w"),
            ConfigError,
            "s3://bucket/w: expected a path of this machine, found a URL",
        ),
        (f"{place}/duplicates/w", OutputError, "finds the rows of both"),
        (data, OutputError, "is read from"),
        (data / "work", OutputError, "finds the rows of both"),
    ):
        with pytest.raises(kind, match=message):
            curate(data, place, recipe, work=work, **where)
    with pytest.raises(OutputError, match="s3://bucket/refused/embeddings: who reads the outer"):
        curate(f"{place}/", place, recipe, work=tmp_path / "w", storage_options=options(server))
    with pytest.raises(
        ConfigError, match="s3://bucket/refused: expected a path of this machine, found a URL"
    ):
        curate(data, Path(place), recipe, work=tmp_path / "w")  # which is s3:/bucket/refused
    assert store.find(f"{BUCKET}/refused") == [] and not (tmp_path / "w").exists()


def test_what_is_fetched_goes_to_a_store_first(tmp_path, server, store):
    """Images and output have a folder each there; a second call asks no server for an image."""
    images, out = f"s3://{BUCKET}/images", f"s3://{BUCKET}/fetched"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(OF_URLS.format(table=tmp_path / "urls"))
    given = {"storage_options": options(server)}
    with ImageServer() as web:
        write_urls(tmp_path / "urls", "0.parquet", web, range(10))
        summary = curate(images, out, Recipe.read(recipe), **given)
        asked = len(web.asked)
        before = states(store, f"{BUCKET}/fetched/shards") | states(store, f"{BUCKET}/images")
        again = curate(images, out, Recipe.read(recipe), **given)
        assert len(web.asked) == asked > 0
    assert (summary.rows, summary.unfetched, summary.duplicates, summary.kept) == (
        10,
        3,
        1,
        5,
    ) and again.kept == 5
    assert before == states(store, f"{BUCKET}/fetched/shards") | states(store, f"{BUCKET}/images")
    store.get(f"{BUCKET}/fetched/shards", str(tmp_path / "out/shards"), recursive=True)
    assert exported(tmp_path / "out") == expected(range(10))
