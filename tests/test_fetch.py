"""Images by their URLs: what comes, what does not and why, and what a rerun does."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
import socket
import tarfile
import threading
import time

import dask
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, check_colours, colour_of, read_output
from fetched import fetch, fetch_alone, fetch_with_few_files
from image_servers import SUFFIXES, ImageServer, big_picture, picture_of
from PIL import Image
from s3 import BUCKET, options, s3_server
from typer.testing import CliRunner

from curator_dask.checks.preflight import preflight
from curator_dask.cli import app
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError, NetworkError, OutputError
from curator_dask.fetching.addresses import kind_of
from curator_dask.fetching.asking import disallowed, wait_of
from curator_dask.fetching.lookups import KNOWN_HOSTS
from curator_dask.info import describe_output
from curator_dask.outputs.lock import RunLock
from curator_dask.runs.parts import Part

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def server():
    with ImageServer() as server:
        yield server


def write_table(path, urls, **columns):
    rows = {"url": urls, "caption": [f"caption of {number}" for number in range(len(urls))], **columns}
    pq.write_table(pa.table(rows), path)
    return path


def members_of(folder):
    """All members of all tars, by tarfile alone."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


# What comes in the place of an image, and what is said of it.
FAULTS = {
    "status/404": ("failed_to_download", "not found (404)"),
    "status/410": ("failed_to_download", "gone (410)"),
    "status/403": ("failed_to_download", "forbidden (403)"),
    "status/418": ("failed_to_download", "HTTP status (418)"),
    "status/500": ("failed_to_download", "server error (500)"),
    "closed/1": (
        "failed_to_download",
        "too many requests (429): to be asked again in 3600 s, which is too long",
    ),
    "loop/1": ("failed_to_download", "too many redirects: more than 5"),
    "hop/6": ("failed_to_download", "too many redirects: more than 5"),
    "file/1": ("failed_to_download", "bad redirect: no URL of http or https: file://"),
    "short/1": ("failed_to_download", "cut short: the server has closed the connection"),
    "bomb/1": ("failed_to_download", "too large: more than 3.0 MB (max_bytes is 3,000,000)"),
    "endless/1": ("failed_to_download", "too large: more than 3.0 MB (max_bytes is 3,000,000)"),
    "more/1": ("failed_to_download", "too large: more than 3.0 MB (max_bytes is 3,000,000)"),
    "secret/1": ("failed_to_download", "bad redirect: 'http://127.0.0.1:99999/'"),
    "declared/1": (
        "failed_to_download",
        "too large: 1.1 TB, as the server says (max_bytes is 3,000,000)",
    ),
    "brotli/1": ("failed_to_download", "bad answer: its encoding is 'br', which was not asked for"),
    "drip/1": ("failed_to_download", "timed out: it was not there within 1 s"),
    "noai/1": ("failed_to_download", "robots: X-Robots-Tag says noai"),
    "html/1": ("failed_to_check", "HTML instead of an image"),
    "empty/1": ("failed_to_check", "empty (0 bytes)"),
}


def test_every_row_has_its_image_or_the_reason_why_not(server, tmp_path):
    good = {"n/1.jpg": 1, "n/2.jpg": 2, "n/3.jpg": 3, "n/4.jpg": 4, "hop/4": 7, "flaky/9": 9, "busy/10": 10}
    good |= {"gzip/11": 11, "others/12": 12}
    good |= {"parts/13": 13, "bare/14": 14, "unpacked/15": 15, "utf-8/16": 16}
    paths = [*good, *FAULTS, "cut/1", "odd/1"]
    urls = [server.url(path) for path in paths] + [
        None,
        "",
        "ftp://example.org/a.jpg",
        "http:///a.jpg",
        "http://user:secret@no-such-host.invalid/a.jpg",
        "http://127.0.0.1:1/a.jpg",
        f"https://127.0.0.1:{server.port}/n/1.jpg",
        "data:image/png;base64," + "A" * 10_000,
        f"http://{'a' * 300}.example/a.jpg",
        server.url(1),
        server.url("big/1"),
    ]
    captions = [f"caption of {number}" for number in range(len(urls))]
    captions[2] = None
    table = write_table(
        tmp_path / "urls.parquet", urls, caption=captions, width=[5] * len(urls), tags=[["a"]] * len(urls)
    )
    out = tmp_path / "out"
    summary = fetch(table, out, rows_per_shard=100, timeout=1, max_bytes=3_000_000, retries=1)

    rows = read_output(out).to_pylist()
    assert [row["url"] for row in rows] == urls
    assert [row["key"] for row in rows] == [f"00000{n:02d}" for n in range(len(urls))]
    assert [row["caption"] for row in rows] == captions
    assert {row["table_width"] for row in rows} == {5}
    members = members_of(out)
    images = 0
    for row, path in zip(rows, [*paths, *[""] * 9, "n/1.jpg", "big/1"], strict=True):
        if path == "big/1" or path in good:
            data = big_picture() if path == "big/1" else picture_of(good[path])
            suffix = "png" if path == "big/1" else SUFFIXES[good[path] % 4]
            images += 1
            assert (row["status"], row["error_message"]) == ("success", None), path
            assert members.pop(f"{row['key']}.{suffix}") == data, path
            assert members.pop(f"{row['key']}.txt").decode() == (row["caption"] or "")
            said = json.loads(members.pop(f"{row['key']}.json"))
            assert said == {name: row[name] for name in row if name not in ("status", "error_message")}
            assert row["sha256"] == hashlib.sha256(data).hexdigest()
            assert (row["width"], row["height"]) == Image.open(io.BytesIO(data)).size
            assert (row["original_width"], row["original_height"]) == (row["width"], row["height"])
        elif path in FAULTS:
            assert (row["status"], row["error_message"]) == FAULTS[path]
        else:
            assert row["status"].startswith("failed_to_") and row["sha256"] is row["width"] is None
    assert not members
    said = {row["url"]: row["error_message"] or "" for row in rows}
    assert said[server.url("cut/1")].startswith("truncated: ")
    assert said[server.url("odd/1")].startswith("bad answer: ")
    assert said[None] == said[""] == "no URL: the row has none"
    assert said["http:///a.jpg"] == "no URL: it names no host"
    assert said["http://127.0.0.1:1/a.jpg"].startswith("no connection: ")
    assert said[urls[-5]].startswith("TLS: ")
    assert said[urls[-4]] == "no URL of http or https: data://"
    assert said[urls[-3]] == "no URL: the name of its host has 308 characters"
    assert said["http://user:secret@no-such-host.invalid/a.jpg"].startswith(
        ("no such host: ", "DNS failed: ")
    )

    assert (summary.rows, summary.images, summary.failed) == (len(urls), images, len(urls) - images)
    assert summary.reasons.total() == summary.failed and summary.no_caption == 1
    assert summary.got == images and summary.tried == len(urls) and summary.complete
    assert len(str(summary.examples)) < 8_000, "no megabytes of a URL that is an image itself"
    assert summary.reasons["too large"] == 4 and summary.hosts["127.0.0.1"] == len(FAULTS) + 4
    assert "secret" not in str(summary) and "4 x too large, for example " in str(summary)
    assert server.asked["n/1.jpg"] == 1, "once a shard, however many rows have it"
    assert server.asked["status/404"] == 1 and server.asked["status/500"] == 2
    assert all(agent.startswith("curator-dask/") for agent in server.agents)


def test_the_same_again_does_nothing_and_other_settings_are_refused(server, tmp_path):
    table, out = tmp_path / "urls", tmp_path / "out"
    table.mkdir()
    write_table(table / "a.parquet", [server.url(n) for n in range(10)])
    first = fetch(table, out)
    assert (first.written, first.images) == (3, 10)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    asked = server.asked.total()
    again = fetch(table, out, timeout=7, connections=3)
    assert (again.written, again.skipped, again.images) == (0, 3, 10) and "nothing to do" in str(again)
    assert server.asked.total() == asked
    assert before == {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    with pytest.raises(OutputError, match="rows_per_shard is 4 and not 5"):
        fetch(table, out, rows_per_shard=5)
    # The table has grown: only shards that differ are fetched, and only with leave.
    write_table(table / "b.parquet", [server.url(n) for n in range(10, 13)])
    with pytest.raises(OutputError, match=r"of another table, or of other rows.*: of 3 shards 1 would go"):
        fetch(table, out)
    assert server.asked.total() == asked
    grown = fetch(table, out, overwrite=True)
    assert (grown.images, grown.skipped, grown.written) == (13, 2, 2)
    assert [server.asked[f"n/{n}.jpg"] for n in range(13)] == [1] * 8 + [2] * 2 + [1] * 3
    # Where all shards stay it needs no leave.
    write_table(table / "b.parquet", [server.url(n) for n in range(10, 16)])
    assert fetch(table, out, overwrite=True).images == 16
    write_table(table / "c.parquet", [server.url(n) for n in range(3)])
    more = fetch(table, out)
    assert (more.images, more.skipped, more.written) == (19, 4, 1)
    (table / "c.parquet").unlink()
    with pytest.raises(OutputError, match="of 5 shards 1 would go"):
        fetch(table, out)
    write_table(table / "b.parquet", [server.url(n) for n in range(10, 13)])
    # Other samples: all of them.
    other = fetch(table, out, overwrite=True, rows_per_shard=5, caption_column=None)
    assert (other.written, sorted(path.name for path in out.glob("*.tar"))) == (
        3,
        [f"0000{n}.tar" for n in range(3)],
    )
    assert len(members_of(out)) == 26
    # What is not of a fetch is left alone.
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "00000.tar").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"has 00000.tar, which is not of a fetch"):
        fetch(table, foreign, overwrite=True)
    assert [path.name for path in foreign.iterdir()] == ["00000.tar"]


def shards_of(folder):
    """Bytes of the tars, and rows: footers say how long it took."""
    tars = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
    return tars, {path.name: pq.read_table(path).to_pylist() for path in folder.glob("*.parquet")}


def test_parts_are_one_fetch_of_the_whole(server, tmp_path):
    table, out, whole = (tmp_path / name for name in ("urls", "out", "whole"))
    table.mkdir()
    write_table(table / "a.parquet", [server.url(n) for n in range(22)])
    for number in range(3):
        done = fetch(table, out, part=(number, 3))
        assert done.written == done.part["shards"] and done.part["all_shards"] == 6
        assert f"part {number}/3: {done.written} of 6 shards" in str(done)
    rest = fetch(table, out)
    assert (rest.written, rest.skipped, rest.rows, fetch(table, whole).rows) == (0, 6, 22, 22)
    assert shards_of(out) == shards_of(whole)
    notes = [json.loads((tmp_path / f"{name}.fetch" / "run.json").read_text()) for name in ("out", "whole")]
    assert notes[0] == notes[1]
    with pytest.raises(
        OutputError, match="has shards of another fetch, whose rows_per_shard is 4 and not 11"
    ):
        fetch(table, out, rows_per_shard=11, part=(0, 3))
    with pytest.raises(
        OutputError, match=r"4 shards of another fetch.*, 00002 for example, and a part removes"
    ):
        fetch(table, out, rows_per_shard=11, part=(0, 3), overwrite=True)
    assert shards_of(out) == shards_of(whole)
    # The table grows, and the last shard was not full.
    write_table(table / "b.parquet", [server.url(n) for n in range(22, 30)])
    with RunLock(str(tmp_path / "empty"), part=Part(2, 3)) as lock:
        lock.declare({"fetch": {}})  # and no shard is there that would tell
        with pytest.raises(
            OutputError, match=r"part 2/3 of a fetch is at work, whose url is None and not 'url'"
        ):
            fetch(table, tmp_path / "empty", part=(0, 3))
    with RunLock(str(out), part=Part(2, 3)):
        written = [fetch(table, out, part=(number, 3), overwrite=True).written for number in (0, 1)]
        with pytest.raises(OutputError, match="another run of part 2/3 is writing there"):
            fetch(table, out, part=(2, 3))
    written.append(fetch(table, out, part=(2, 3)).written)
    assert sum(written) == 3 and fetch(table, out).written == 0
    fetch(table, tmp_path / "all")
    assert shards_of(out) == shards_of(tmp_path / "all")


def test_failed_rows_are_tried_again(server, tmp_path):
    paths = [1, 2, "status/404", 3, 4, 5]
    table = write_table(tmp_path / "urls.parquet", [server.url(path) for path in paths])
    out, whole = tmp_path / "out", tmp_path / "whole"
    server.broken = {"n/2", "n/4", "n/5"}
    first = fetch(table, out, retries=0)
    assert first.reasons == {"server error": 3, "not found": 1} and first.may_pass == 3
    server.broken = {"n/4"}
    tar = (out / "00001.tar").read_bytes()
    second = fetch(table, out, retries=0, retry_failed=True)
    assert (second.tried, second.got, second.images) == (3, 2, 4)
    assert server.asked["n/1.jpg"] == server.asked["status/404"] == 1
    assert (out / "00001.tar").read_bytes() != tar
    # An interruption between the tar and its rows: what is beside is put in its place.
    server.broken = set()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    third = fetch(table, out, retry_failed=True)
    assert (third.tried, third.images, third.failed) == (1, 5, 1)
    pending = tmp_path / "out.fetch" / "pending" / "00001.parquet"
    pending.parent.mkdir(exist_ok=True)
    new = (out / "00001.parquet").read_bytes()
    pending.write_bytes(new)
    (out / "00001.parquet").write_bytes(before["00001.parquet"])
    asked = server.asked.total()
    assert fetch(table, out).images == 5 and (out / "00001.parquet").read_bytes() == new
    assert not pending.exists() and server.asked.total() == asked
    # And one before the tar was in its place, though it is as long: what was there holds.
    pending.write_bytes(new)
    for name in ("00001.tar", "00001.parquet"):
        (out / name).write_bytes(before[name])
    assert fetch(table, out).images == 4 and not pending.exists()
    assert fetch(table, out, retry_failed=True).images == 5
    fetch(table, whole)
    assert members_of(out) == members_of(whole)
    assert read_output(out).equals(read_output(whole))


def test_bytes_that_the_list_does_not_mean_fail(server, tmp_path):
    right = [hashlib.sha256(picture_of(n)).hexdigest() for n in range(4)]
    right[1], right[3] = right[2], None
    md5 = [hashlib.md5(picture_of(n)).hexdigest().upper() for n in range(4)]
    urls = [server.url(n) for n in range(4)]
    table = write_table(tmp_path / "urls.parquet", urls, sha256=right, md5=[*md5[:2], "0" * 9, md5[3]])
    fetch(table, tmp_path / "out", sha256_column="sha256", md5_column="md5")
    rows = read_output(tmp_path / "out").to_pylist()
    assert [row["status"] for row in rows] == [
        "success",
        "failed_to_download",
        "failed_to_download",
        "success",
    ]
    made = hashlib.sha256(picture_of(1)).hexdigest()
    assert rows[1]["error_message"] == f"other content: sha256 is {made}, the list says {right[2]}"
    assert rows[2]["error_message"] == "no md5: the list has '000000000', expected 32 hexadecimal digits"
    assert [row["table_sha256"] for row in rows] == right
    assert [name for name in members_of(tmp_path / "out") if not name.endswith((".txt", ".json"))] == [
        "000000.png",
        "000003.gif",
    ]


def test_addresses_of_ones_own_network_are_refused(server, tmp_path):
    # Names that mean such an address: it counts what is connected to.
    KNOWN_HOSTS.put("rebound.example", [(socket.AF_INET, "127.0.0.1")])
    hosts = [
        "127.0.0.1",
        "localhost",
        "rebound.example",
        "0x7f000001",
        "127.1",
        "2130706433",
        "[::ffff:127.0.0.1]",
    ]
    urls = [f"http://{host}:{server.port}/n/{number}.jpg" for number, host in enumerate(hosts)]
    urls.append("http://169.254.169.254/latest/meta-data")
    table = write_table(tmp_path / "urls.parquet", urls)
    summary = fetch(table, tmp_path / "out", allow_private=False)
    KNOWN_HOSTS.clear()
    said = [row["error_message"] for row in read_output(tmp_path / "out").to_pylist()]
    assert summary.images == 0 and not server.asked and "--allow-private, where the list" in str(summary)
    assert "rows that were refused before also need --retry-failed" in str(summary)
    assert said[0] == said[2] == "address refused: 127.0.0.1 is loopback"
    assert said[7] == "address refused: 169.254.169.254 is link-local"
    assert all(each.startswith(("address refused: ", "no URL: ", "no such host: ")) for each in said), said
    # A proxy resolves names itself; addresses, in redirects too, are refused before it is asked for them.
    table = write_table(
        tmp_path / "proxied.parquet",
        ["http://a.example/n/5.jpg", "http://a.example/elsewhere/1", "http://0x7f.1/", "http://localhost./"],
    )
    through = fetch(table, tmp_path / "through", allow_private=False, proxy=f"http://127.0.0.1:{server.port}")
    rows = read_output(tmp_path / "through").to_pylist()
    assert through.images == 1 and members_of(tmp_path / "through")["000000.jpg"] == picture_of(5)
    assert [row["error_message"] for row in rows[1:]] == [
        "address refused: 169.254.169.254 is link-local",
        "address refused: 0x7f.1 is no address",
        "address refused: localhost is loopback",
    ]


def test_which_addresses_these_are():
    public = ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"]
    assert [kind_of(each) for each in public] == [None] * 4
    own = [
        "10.0.0.1",
        "172.16.3.4",
        "192.168.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "fc00::1",
        "::",
    ]
    own += [
        "fe80::1%eth0",
        "224.0.0.1",
        "ff02::1",
        "240.0.0.1",
        "::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a9fe:a9fe",
    ]
    own += ["2002:7f00:1::", "198.18.0.1", "192.0.2.1", "192.0.0.192", "168.63.129.16", "fec0::1", "3fff::1"]
    own += ["64:ff9b:1::7f00:1", "::7f00:1", "::ffff:0:7f00:1"]
    assert [each for each in own if kind_of(each) is None] == []


def test_limits_hold_and_one_host_holds_up_no_other(server, tmp_path):
    server.pause = 0.02
    table = write_table(tmp_path / "urls.parquet", [server.url(n) for n in range(40)])
    fetch(table, tmp_path / "out", per_host=3, rows_per_shard=40)
    assert server.most == 3
    server.most, server.pause, server.held = 0, 0.0, {"n/999"}
    # One that never answers: all others are there long before, and after some it is asked no more.
    slow = [f"http://127.0.0.1:{server.port}/n/999{n}.jpg" for n in range(70)]
    fast = [f"http://localhost:{server.port}/n/{n}.jpg" for n in range(70)]
    table = write_table(tmp_path / "slow.parquet", [*slow, *fast])
    begun = time.monotonic()
    summary = fetch(table, tmp_path / "slow", rows_per_shard=140, timeout=0.5, retries=0, connections=16)
    assert summary.images == 70 and time.monotonic() - begun < 20
    assert summary.reasons["timed out"] + summary.reasons["host given up"] == 70
    assert 32 <= summary.reasons["timed out"] < 50
    assert "host given up: 127.0.0.1: failed 32 times in a row, last by 'timed out'" in str(
        summary.examples["host given up"]
    )


def test_that_hardly_an_image_comes_is_said_early(server, tmp_path, said):
    table = write_table(tmp_path / "urls.parquet", [server.url(f"status/404?{n}") for n in range(510)])
    summary = fetch(table, tmp_path / "out", rows_per_shard=510)
    assert "0.0% of the first 510 rows have an image (510 x not found): is it worth going on?" in said.text
    info = describe_output(str(tmp_path / "out"))
    assert (info.kind, info.rows, info.failed, info.splits[0].rows) == ("fetch", 510, 510, 0)
    assert "shards that fetch wrote" in str(info) and "0 samples in 1 tar" in str(info)
    # Its tar is empty, and the rest takes it.
    assert summary.reasons == {"not found": 510} and members_of(tmp_path / "out") == {}
    assert preflight(str(tmp_path / "out"), "key").rows == 510


def test_a_network_that_is_not_there_stops_the_run(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound, and nobody listens
        table = write_table(tmp_path / "urls.parquet", [f"http://127.0.0.1:{port}/{n}" for n in range(220)])
        with pytest.raises(NetworkError, match=r"no server answers: of the last 200 URLs, on 1 host"):
            fetch(table, tmp_path / "out", rows_per_shard=220, retries=0)
        assert not (tmp_path / "out").exists() or not [*(tmp_path / "out").iterdir()]
        summary = fetch(table, tmp_path / "out", rows_per_shard=220, retries=0, keep_going=True)
    assert (summary.rows, summary.images) == (220, 0) and summary.may_pass == 220
    assert "NONE of 220 rows has an image" in str(summary)


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "txt", "folder", "csv.gz", "nameless.tsv"])
def test_tables(server, tmp_path, form):
    frame = pd.DataFrame({"link": [server.url(n) for n in range(6)], "text": [f"a, {n}" for n in range(6)]})
    path = tmp_path / f"urls[1].{form}"
    more = {}
    if form in ("csv", "csv.gz"):
        frame.to_csv(path, index=False)
    elif form == "nameless.tsv":
        frame.to_csv(path, index=False, header=False, sep="\t")
        more = {"column_names": ["link", "text"]}
    elif form == "tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif form == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif form == "txt":
        path.write_text("\n".join(frame["link"]) + "\n")
    else:
        path.mkdir()
        frame[:3].to_csv(path / "a.csv", index=False)
        frame[3:].assign(score=0.5).to_csv(path / "b.csv", index=False)
    caption = None if form == "txt" else "text"
    for _ in range(2):
        summary = fetch(path, tmp_path / "out", url_column="link", caption_column=caption, **more)
        assert summary.images == 6
    assert server.asked.total() == 6
    rows = read_output(tmp_path / "out")
    assert rows["url"].to_pylist() == [*frame["link"]]
    if caption:
        assert rows["caption"].to_pylist() == [*frame["text"]]
    if form == "folder":
        assert rows["score"].to_pylist() == [None] * 3 + [0.5] * 3
    names = members_of(tmp_path / "out")
    assert ("000000.txt" in names) == (caption is not None) and len(names) == 6 * (3 if caption else 2)


def test_a_trial_of_the_first_rows_goes_on_to_more(server, tmp_path):
    table, out = tmp_path / "urls", tmp_path / "out"
    table.mkdir()
    write_table(table / "a.parquet", [server.url(n) for n in range(5)])
    write_table(table / "b.parquet", [server.url(n) for n in range(5, 14)])
    trial = fetch(table, out, limit=6)
    assert (trial.rows, trial.images, trial.written, server.asked.total()) == (6, 6, 2, 6)
    assert fetch(table, out, limit=6).written == 0
    more = fetch(table, out, limit=9)  # the one that was not full is fetched anew
    assert (more.rows, more.skipped, more.written, server.asked.total()) == (9, 1, 2, 6 + 5)
    with pytest.raises(OutputError, match="has shards of another fetch, of more rows than limit=7"):
        fetch(table, out, limit=7)
    with pytest.raises(OutputError, match="whose rows_per_shard is 4 and not 5"):
        fetch(table, out, rows_per_shard=5)
    every = fetch(table, out)
    assert (every.rows, every.images, every.skipped) == (14, 14, 2)
    assert fetch(table, out, limit=99).written == 0
    fetch(table, tmp_path / "whole")
    assert members_of(out) == members_of(tmp_path / "whole")
    assert read_output(out).equals(read_output(tmp_path / "whole"))
    assert fetch(table, out, limit=7, overwrite=True).rows == 7 and len(read_output(out)) == 7


def test_values_that_python_or_json_does_not_have(server, tmp_path):
    bad = pa.StringArray.from_buffers(
        2, pa.py_buffer(np.array([0, 2, 4], np.int32)), pa.py_buffer(b"a\xff\xed\xa0")
    )
    far = pa.array([2**60, None], pa.timestamp("us"))
    urls = [server.url(1), server.url(2)]
    within = pa.ListArray.from_arrays([0, 1, 2], pa.StructArray.from_arrays([bad], ["a"]))
    date = pa.array([2**30, 0], pa.date32())
    table = write_table(
        tmp_path / "urls.parquet", urls, caption=bad, far=far, note=bad, date=date, within=within
    )
    summary = fetch(table, tmp_path / "out")
    assert (summary.rows, summary.images, summary.failed_shards) == (2, 2, {})
    rows = read_output(tmp_path / "out")
    assert rows["caption"].to_pylist() == rows["note"].to_pylist() == ["a\ufffd", "\ufffd\ufffd"]
    assert rows["far"].combine_chunks().equals(far)
    members = members_of(tmp_path / "out")
    assert members["000000.txt"].decode() == "a\ufffd"
    said = json.loads(members["000000.json"])
    assert (said["url"], said["note"], json.loads(members["000001.json"])["far"]) == (
        urls[0],
        "a\ufffd",
        None,
    )
    assert (said["far"], said["date"]) == (2**60, 2**30)
    assert said["within"] == [{"a": "a\ufffd"}] and rows["within"].to_pylist()[1] == [{"a": "\ufffd\ufffd"}]


def test_a_table_that_changes_meanwhile_gives_no_shard_other_rows(server, tmp_path):
    table = write_table(tmp_path / "urls.parquet", [server.url(n) for n in range(8)])
    server.held = {"n/3"}

    def change():
        while server.asked["n/3.jpg"] == 0:
            time.sleep(0.01)
        write_table(table, [server.url(n) for n in (7, 6, 5, 4, 3, 2, 1)])
        server.held = set()

    changing = threading.Thread(target=change)
    changing.start()
    with pytest.raises(DatasetError, match=r"urls.parquet: has changed since this fetch began"):
        fetch(table, tmp_path / "out")
    changing.join()
    assert read_output(tmp_path / "out")["url"].to_pylist() == [server.url(n) for n in range(4)]


def test_keys_of_the_table(server, tmp_path):
    urls = [server.url(n) for n in range(4)]
    table = write_table(tmp_path / "urls.parquet", urls, uid=["b", "a", "d", "c"], bad=["a", "b.c", "d", "e"])
    fetch(table, tmp_path / "out", id_column="uid")
    assert {name.partition(".")[0] for name in members_of(tmp_path / "out")} == {*"abcd"}
    rows = read_output(tmp_path / "out")
    assert rows["key"].to_pylist() == rows["uid"].to_pylist() == ["b", "a", "d", "c"]
    with pytest.raises(
        DatasetError, match=r"column 'bad' \(--id-column\): 'b.c' \(its row 1\) can be no key"
    ):
        fetch(table, tmp_path / "bad", id_column="bad")
    table = write_table(tmp_path / "twice.parquet", urls, uid=["a", "b", "a", "c"])
    with pytest.raises(DatasetError, match="'a' is there 2 times"):
        fetch(table, tmp_path / "bad", id_column="uid")


@pytest.mark.parametrize("form", ["webp", "keep"])
def test_images_are_made_smaller(server, tmp_path, form):
    table = write_table(tmp_path / "urls.parquet", [server.url(n) for n in (1, 2, 3)])
    summary = fetch(table, tmp_path / "out", max_side=10, image_format=form)
    rows = read_output(tmp_path / "out").to_pylist()
    members = members_of(tmp_path / "out")
    for row, number in zip(rows, (1, 2, 3), strict=True):
        was = Image.open(io.BytesIO(picture_of(number)))
        assert (row["original_width"], row["original_height"]) == was.size
        assert row["sha256"] == hashlib.sha256(picture_of(number)).hexdigest()
        now = Image.open(io.BytesIO(members[f"{row['key']}.{form if form == 'webp' else SUFFIXES[number]}"]))
        assert now.size == (row["width"], row["height"])
        stays = form == "keep" and number == 3  # a GIF is made smaller in another format only
        assert max(now.size) == (max(was.size) if stays else 10)
        assert (row["image_left"] is not None) == stays
        pixels = np.asarray(now.convert("RGB"), int).mean((0, 1))
        assert abs(pixels - colour_of(str(number))).max() < 12
    assert summary.left == ({"format": 1} if form == "keep" else {})


def test_what_cannot_be(server, tmp_path):
    table = write_table(tmp_path / "urls.parquet", [server.url(1)])
    for settings, said in (
        ({"conections": 3}, "did you mean connections"),
        ({"per_host": 0}, r"per_host=0 \(--per-host\): expected a whole number from 1 up"),
        ({"limit": 0}, r"limit=0 \(--limit\): expected a whole number from 1 up"),
        ({"column_names": "url"}, "expected a list of names"),
        ({"column_names": ["url"]}, "a CSV or TSV that has no line with them, and .*urls.parquet is none"),
        ({"quality": 80}, "give max_side or min_side"),
        ({"user_agent": "a\nb"}, "expected a line of ASCII"),
    ):
        with pytest.raises(ConfigError, match=said):
            fetch(table, tmp_path / "out", **settings)
    with pytest.raises(DatasetError, match=r"expected a column 'URL' with the URLs.*did you mean url"):
        fetch(table, tmp_path / "out", url_column="URL")
    with pytest.raises(DatasetError, match=r"no column 'text'.*--caption-column"):
        fetch(table, tmp_path / "out", caption_column="text")
    with pytest.raises(DatasetError, match=r"column 'several': expected text, found list"):
        several = write_table(tmp_path / "lists.parquet", [server.url(1)], several=[["a", "b"]])
        fetch(several, tmp_path / "out", caption_column="several")
    (tmp_path / "cc12m.tsv").write_text(f"{server.url(1)}\ta caption\n")
    with pytest.raises(DatasetError, match="Its first line has a URL: say what its columns are"):
        fetch(tmp_path / "cc12m.tsv", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.fetch").exists()


def test_what_robots_are_told():
    assert disallowed(["noindex, nofollow", "noai"]) == "noindex, noai"
    assert disallowed(["googlebot: noindex, noai"]) == "" == disallowed([]) == disallowed(["all"])
    assert disallowed(
        ["curator-dask: noimageai", "unavailable_after: 25 Jun 2030 15:00:00 PST, NoImageIndex"]
    )
    assert wait_of("120") == 120 and wait_of("soon") is None is wait_of(None)
    assert wait_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0


# Last of all: these start processes, of which the first takes seconds to be there.
def test_a_killed_run_goes_on_and_its_tars_are_the_same(server, tmp_path):
    table = write_table(tmp_path / "urls.parquet", [server.url(n) for n in range(12)])
    server.held = {"n/6"}
    out, whole = tmp_path / "out", tmp_path / "whole"
    process = multiprocessing.get_context("forkserver").Process(target=fetch_alone, args=(table, out))
    process.start()
    end = time.monotonic() + 60
    while not (out / "00000.parquet").exists() or server.asked["n/6.jpg"] == 0:
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (out / "00001.parquet").exists()
    assert [*(tmp_path / "out.fetch").rglob("*.tmp")]
    server.held = set()
    summary = fetch(table, out)
    assert (summary.skipped, summary.written, summary.images) == (1, 2, 12)
    assert server.asked["n/1.jpg"] == 1 and server.asked["n/6.jpg"] == 2
    assert not [path for folder in tmp_path.iterdir() if folder.is_dir() for path in folder.rglob("*.tmp")]
    fetch(table, whole)
    assert members_of(out) == members_of(whole)
    for name in ("00000", "00001", "00002"):
        assert (out / f"{name}.tar").read_bytes() == (whole / f"{name}.tar").read_bytes()
        assert pq.read_table(out / f"{name}.parquet").equals(pq.read_table(whole / f"{name}.parquet"))


def test_where_few_files_may_be_open_no_row_fails_of_it(server, tmp_path):
    server.pause = 0.02
    table = write_table(tmp_path / "urls.parquet", [server.url(n) for n in range(100)])
    process = multiprocessing.get_context("forkserver").Process(
        target=fetch_with_few_files, args=(table, tmp_path / "out")
    )
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert read_output(tmp_path / "out")["status"].to_pylist() == ["success"] * 100


def test_the_rest_reads_what_it_writes(server, client, tmp_path):
    """On a cluster, by the command: each vector is the colour of the row's own image."""
    numbers = [*range(20, 31)]
    urls = [server.url(n) for n in numbers]
    urls[4] = server.url("status/404")
    table = write_table(tmp_path / "urls.parquet", urls)
    command = [
        "fetch",
        str(table),
        str(tmp_path / "out"),
        "--caption-column",
        "caption",
        "--rows-per-shard",
        "3",
    ]
    command += [
        "--allow-private",
        "--scheduler-address",
        client.scheduler.address,
        "--json",
        str(tmp_path / "s.json"),
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    said = json.loads((tmp_path / "s.json").read_text())
    assert (said["rows"], said["images"], said["written"]) == (11, 10, 4)
    assert preflight(str(tmp_path / "out"), "key").ok
    dataset = ImageTextPairDataset.from_webdataset(str(tmp_path / "out"), "key")
    with dask.config.set(scheduler="sync"):
        summary = ColourReader()(dataset).save_metadata(str(tmp_path / "vectors"))
    assert (summary.rows, summary.failed) == (11, 1)
    rows = read_output(tmp_path / "vectors").sort_by("key")
    bad = str(numbers[4])
    assert rows["url"].to_pylist() == urls
    jpeg = [n for n in numbers if n % 4 != 1]  # which keep their colours to the bit
    lossless = [
        (str(n), v) for n, v in zip(numbers, rows["image_embedding"].to_pylist(), strict=True) if n in jpeg
    ]
    check_colours([n for n, _ in lossless], [v for _, v in lossless], bad={bad})
    assert rows["image_error"][4].as_py().endswith("(status: failed_to_download: not found (404))")
    told = describe_output(tmp_path / "out")
    assert (told.kind, told.failed, told.splits[0].rows) == ("fetch", 1, 10)
    assert [(each.reason, each.rows) for each in told.reasons] == [("not found", 1)]
    assert CliRunner().invoke(app, [*command, "--min-good", "0.95"]).exit_code == 1


@pytest.mark.slow
def test_a_table_and_shards_in_a_store(server, tmp_path):
    with s3_server() as store:
        known = options(store)
        frame = pd.DataFrame({"url": [server.url(n) for n in range(9)], "caption": [*"abcdefghi"]})
        with fsspec.open(f"s3://{BUCKET}/urls.csv.gz", "wt", compression="gzip", **known) as file:
            frame.to_csv(file, index=False)
        given = {"storage_options": known, "output_storage_options": known, "retries": 0}
        server.broken = {"n/5"}
        assert fetch(f"s3://{BUCKET}/urls.csv.gz", f"s3://{BUCKET}/out", **given).failed == 1
        server.broken = set()
        again = fetch(f"s3://{BUCKET}/urls.csv.gz", f"s3://{BUCKET}/out", **given, retry_failed=True)
        assert (again.tried, again.images, again.failed) == (1, 9, 0)
        assert fetch(f"s3://{BUCKET}/urls.csv.gz", f"s3://{BUCKET}/out", **given).written == 0
        fs = fsspec.filesystem("s3", **known)
        fs.invalidate_cache()
        fs.get(f"{BUCKET}/out", str(tmp_path / "out"), recursive=True)
    members = members_of(tmp_path / "out")
    for number in range(9):
        key = f"{number // 4:05d}{number % 4}"
        assert members[f"{key}.{SUFFIXES[number % 4]}"] == picture_of(number)
        assert members[f"{key}.txt"].decode() == "abcdefghi"[number]
