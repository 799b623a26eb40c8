"""The page to look at an output: in a real browser it shows what the search finds, and lets in nobody else."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import transformers
from browser import NARROW
from colours import colour_of, image_of, write_tar
from PIL import Image
from texts import make_pair
from typer.testing import CliRunner

from curator_dask.browsing.looking import Browser, Look
from curator_dask.browsing.mixing import mixed
from curator_dask.browsing.serving import MOST_IMAGE, Serving
from curator_dask.browsing.shards import MOST_REMOTE, OpenShards
from curator_dask.cli import app
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, OutputError
from curator_dask.image.embedders import ClipImageEmbedder
from curator_dask.image.embedders.similar import similar_to_image, similar_to_key
from curator_dask.indexing import VectorIndex
from curator_dask.rows.thumbnails import read_thumbnails
from curator_dask.text import ClipTextEmbedder
from curator_dask.text.search import search
from curator_dask.webdataset.opening import open_shard

SHARDS, ROWS = 2, 36
EVIL = "</script><script>document.title = 'taken over'</script><img src=x onerror=alert(1)>"
STRANGE, TURNED, BAD = "0003777", "0103700", "0104100"


def key_of(shard, row):
    return f"0{shard}{row * 1259 % 100_000:05d}" if (shard, row) not in SPECIAL else SPECIAL[shard, row]


SPECIAL = {(0, 3): STRANGE, (1, 3): TURNED, (1, 4): BAD}
KEYS = [key_of(shard, row) for shard in range(SHARDS) for row in range(ROWS)]


def picture_of(key):
    if key == BAD:
        return b"<html>no image</html>"
    if key == TURNED:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (40, 20), colour_of(key)).save(file := io.BytesIO(), "JPEG", quality=95, exif=exif)
        return file.getvalue()
    return image_of(key)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    transformers.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("clip")
    make_pair(folder, "clip")
    transformers.logging.enable_progress_bar()
    return folder


@pytest.fixture(scope="module")
def out(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browsed")
    for shard in range(SHARDS):
        members = []
        for row in range(ROWS):
            key = key_of(shard, row)
            members.append((f"{key}.{'jpg' if key == TURNED else 'png'}", picture_of(key)))
            members.append((f"{key}.txt", (EVIL if key == STRANGE else f"caption of {key}").encode()))
            members.append((f"{key}.json", json.dumps({"width": (row * 7 + shard) % 50}).encode()))
        write_tar(folder / "data" / f"{shard}.tar", members)
    embedder = ClipImageEmbedder(str(model), batch_size=36)
    with dask.config.set(scheduler="sync"):
        embedder(ImageTextPairDataset.from_webdataset(folder / "data")).save_metadata(folder / "out")
    return folder / "out"


@contextmanager
def served(browser):
    """A server of its own thread, as the command's."""
    serving, stop, started = Serving(browser), [], threading.Event()

    async def run():
        event = asyncio.Event()
        stop.extend([asyncio.get_running_loop(), event])
        await serving.run(event, started.set)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(10)
    try:
        yield serving
    finally:
        stop[0].call_soon_threadsafe(stop[1].set)
        thread.join(10)
        browser.close()


@pytest.fixture(scope="module")
def server(out, model):
    with served(Browser(out, ClipTextEmbedder(str(model)))) as serving:
        yield serving


COLOURS = """async () => {
  const found = {};
  for (const tile of document.querySelectorAll("#tiles .tile")) {
    const image = tile.querySelector("img");
    if (!image) { found[tile.row.key] = tile.querySelector(".none")?.textContent ?? null; continue; }
    await image.decode();
    const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
    canvas.width = canvas.height = 1;
    pen.drawImage(image, 0, 0, 1, 1);
    found[tile.row.key] = [...pen.getImageData(0, 0, 1, 1).data.slice(0, 3), image.naturalWidth, image.naturalHeight];
  }
  return found;
}"""


def shown(page):
    return page.evaluate("[...document.querySelectorAll('#tiles .tile')].map((tile) => tile.row.key)")


def wait_for(page, keys):
    """Until these are the first rows."""
    page.wait_for_function(
        "(keys) => keys.every((key, at) => document.querySelectorAll('#tiles .tile')[at]?.row.key === key)",
        arg=keys,
        timeout=15_000,
    )


def keys(hits):
    return [hit.key for hit in hits]


def all_rows(page):
    """Scrolls until there are no more."""
    page.wait_for_function(
        "() => { scrollTo(0, document.body.scrollHeight); return at('end').textContent.startsWith('These'); }"
    )


def test_the_page_shows_what_the_search_finds(server, out, model, open_page, seen, tmp_path):
    page = open_page(server.url)
    page.wait_for_selector("#tiles .tile")
    assert "token" not in page.url and page.inner_text("#said") == f"Rows by chance; {len(KEYS)} rows"
    all_rows(page)
    assert sorted(shown(page)) == sorted(KEYS) and shown(page) != KEYS

    # A text: first those of the exact search, then, further down, the others.
    page.fill("#text", "a red cat")
    page.keyboard.press("Enter")
    hits = search(out, "a red cat", ClipTextEmbedder(str(model)), top=200)
    wait_for(page, keys(hits)[:40])
    all_rows(page)
    assert shown(page) == keys(hits) and len(hits) == len(KEYS) - 1
    assert page.inner_text("#tiles .line b >> nth=0") == f"{hits[0].score:.3f}"
    page.wait_for_function("() => !document.querySelector('.waits')")
    for key, found in page.evaluate(COLOURS).items():
        assert np.abs(np.array(found[:3]) - colour_of(key)).max() <= 6, key
    assert page.evaluate(COLOURS)[TURNED][3:] == [20, 40]
    captions = page.evaluate(
        "[...document.querySelectorAll('#tiles .caption')].map((each) => each.textContent)"
    )
    assert EVIL in captions and page.title() == f"Browse: {out.name}"

    # More like one of them.
    third = shown(page)[3]
    page.locator("#tiles .like").nth(3).click()
    wait_for(page, keys(similar_to_key(out, third, top=30)))
    # A condition, as pandas understands it; a wrong one in words.
    rows = pd.concat([pq.read_table(path).to_pandas() for path in sorted(out.glob("*.parquet"))])
    page.fill("#where", "width >= 25")
    page.keyboard.press("Enter")
    wanted = {*rows["key"][(rows["width"] >= 25)]}
    expected = [key for key in keys(similar_to_key(out, third, top=200)) if key in wanted]
    wait_for(page, expected)
    assert shown(page) == expected and f"{len(wanted)} of {len(KEYS)} rows pass" in page.inner_text("#said")
    page.fill("#where", "widht >= 25")
    page.keyboard.press("Enter")
    page.wait_for_selector("#error:not([hidden])")
    assert "there is no column 'widht'" in page.inner_text("#error") and shown(page) == expected
    # By a column, with its values.
    page.fill("#where", "")
    page.click("#show summary")
    page.check("#columns input[value=width]")
    page.click("#show summary")
    page.select_option("#order", "width")
    order = rows.sort_values("width", ascending=False, kind="stable")
    wait_for(page, order["key"].tolist()[:30])
    assert page.inner_text("#tiles .values dd >> nth=0") == str(order["width"].iloc[0])
    page.go_back()
    page.wait_for_function("() => document.getElementById('said').textContent.includes('Nearest to')")
    assert page.input_value("#order") == ""

    # Like some chosen rows, and then unlike another; a question of another kind ends that.
    page.fill("#where", "")
    page.click("#random")
    page.wait_for_function(
        f"() => document.getElementById('said').textContent === 'Rows by chance; {len(KEYS)} rows'"
    )
    likes = [shown(page)[at] for at in (1, 3) if shown(page)[at] != BAD]
    for key in likes:
        page.locator("#tiles .pick").nth(shown(page).index(key)).click()
    page.click("#these")
    expected = mixed_by_numpy(out, likes, [])[0]
    wait_for(page, expected[:30])
    page.click("#clear")
    page.locator("#tiles .pick").nth(2).click()
    page.click("#away")
    wait_for(page, mixed_by_numpy(out, likes, expected[2:3])[0][:30])
    assert page.inner_text("#said").startswith(f"Nearest to {len(likes)} chosen, away from 1 chosen; ")
    page.wait_for_selector("#chosen", state="hidden")
    # Of a row the last word counts; what cannot be asked leaves what is chosen.
    page.locator("#tiles .pick").nth(0).click()
    own = shown(page)[0]
    page.click("#these")
    wait_for(page, mixed_by_numpy(out, [own], expected[2:3])[0][:30])
    page.click("#away")
    page.wait_for_selector("#error:not([hidden])")
    assert "These are the rows that others are looked for by" in page.inner_text("#error")
    page.evaluate("for (let number = 0; number < 201; number++) chosen.set(number, { number })")
    page.click("#these")
    page.wait_for_function(
        "() => at('error').textContent.includes('200 are the most to look by: choose fewer')"
    )
    assert page.is_visible("#chosen")
    page.click("#clear")
    page.fill("#text", "a cat -“in the rain”")
    page.press("#text", "Enter")
    page.wait_for_function(
        "() => at('said').textContent.startsWith('Nearest to “a cat”, away from “in the rain”; ')"
    )

    # An image of a file.
    (tmp_path / "given.png").write_bytes(image_of("7777"))
    page.fill("#where", "")
    page.set_input_files("#given", tmp_path / "given.png")
    wait_for(page, keys(similar_to_image(out, tmp_path / "given.png", top=30)))
    (tmp_path / "bad.png").write_bytes(b"no image")
    page.set_input_files("#given", tmp_path / "bad.png")
    page.wait_for_selector("#error:not([hidden])")
    assert "not an image" in page.inner_text("#error")

    # Chosen by clicks, over several questions; saved, and taken by `join`.
    chosen = [shown(page)[at] for at in (0, 2, 3, 4)]
    for at in (0, 1, 1, 2):  # the second is taken back
        page.locator("#tiles .pick").nth(at).click()
    page.locator("#tiles .pick").nth(4).click(modifiers=["Shift"])
    page.click("#random")
    page.wait_for_function("() => document.getElementById('said').textContent.startsWith('Rows by chance')")
    more = next(at for at, key in enumerate(shown(page)) if key not in chosen)
    chosen.append(shown(page)[more])
    page.locator("#tiles .pick").nth(more).click()
    assert page.inner_text("#count") == "5 chosen"
    with page.expect_download() as saved:
        page.click("#save")
    saved.value.save_as(tmp_path / saved.value.suggested_filename)
    table = pd.read_csv(tmp_path / "chosen.csv", dtype=str)
    urls = dict(zip(rows["key"], rows["__url__"], strict=True))
    assert table.columns.tolist() == ["key", "__url__"] and table["key"].tolist() == chosen
    assert table["__url__"].tolist() == [urls[key] for key in chosen]
    page.fill("#label", "good")
    page.fill("#value", "no")
    with page.expect_download() as saved:
        page.click("#save")
    saved.value.save_as(tmp_path / "labels.csv")
    assert pd.read_csv(tmp_path / "labels.csv", dtype=str)["good"].tolist() == ["no"] * 5

    # What cannot be answered is not asked again with the next condition.
    all_rows(page)
    page.locator("#tiles .like").nth(shown(page).index(BAD)).click()
    page.wait_for_selector("#error:not([hidden])")
    assert "no vector" in page.inner_text("#error")
    page.fill("#where", "width >= 25")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('said').textContent.includes('rows pass')")
    assert page.is_hidden("#error") and page.inner_text("#said").startswith("Rows by chance")
    assert all(each.startswith((server.url.partition("/?")[0], "data:", "blob:")) for each in seen.requests)


def mixed_by_numpy(out, likes, unlikes, texts=(), not_texts=()):
    """Keys in the order of the cosines to the mean of unit vectors less half the mean of the others."""
    rows = pd.concat([pq.read_table(path).to_pandas() for path in sorted(out.glob("*.parquet"))])
    rows = rows[rows["image_embedding"].notna()]
    vectors = np.stack(rows["image_embedding"].to_list()).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    place = {key: at for at, key in enumerate(rows["key"])}
    parts = [
        np.array([*(vectors[place[key]] for key in some), *words])
        for some, words in ((likes, texts), (unlikes, not_texts))
    ]
    query = parts[0].mean(0) - (0.5 * parts[1].mean(0) if len(parts[1]) else 0)
    cosines = vectors @ (query / np.linalg.norm(query))
    order = [
        at for at in np.argsort(-cosines, kind="stable") if rows["key"].iloc[at] not in {*likes, *unlikes}
    ]
    return rows["key"].iloc[order].tolist(), cosines[order]


def test_like_some_and_unlike_others(out, model):
    browser = Browser(out, ClipTextEmbedder(str(model)))
    files = sorted(out.glob("*.parquet"))
    rows = [key for path in files for key in pq.read_table(path)["key"].to_pylist()]
    likes, unlikes = [rows[at] for at in (2, 9, 45)], [rows[at] for at in (5, 60)]
    number = {key: at for at, key in enumerate(rows)}

    def found(**asked):
        seen = browser.find(Look(**asked), 0, 48)
        return [rows[each] for each in seen.numbers], seen.scores

    def numbers(some):
        return tuple(number[key] for key in some)

    for away in ([], unlikes):
        expected, cosines = mixed_by_numpy(out, likes, away)
        shown, scores = found(kind="these", likes=numbers(likes), unlikes=numbers(away))
        assert shown == expected[:48]
        np.testing.assert_allclose(scores, cosines[:48], atol=1e-5)
    assert found(kind="these", likes=numbers(likes[:1]))[0] == keys(similar_to_key(out, likes[0], top=48))
    # Words behind a minus are not wanted; a hyphen, a dash and a number are none.
    encoder = ClipTextEmbedder(str(model)).encoder_spec().build()
    cat, dog, no_rain = (
        vector / np.linalg.norm(vector)
        for vector in encoder(["a cat", "dog in the rain", "a t-shirt - -5 degrees"], 3).vectors.astype(float)
    )
    words = 'a cat -dog -"in the rain"'
    assert found(kind="text", text=words)[0] == mixed_by_numpy(out, [], [], [cat], [dog])[0][:48]
    shown = found(kind="text", text=words, unlikes=numbers(unlikes))[0]  # a text counts as a row does
    assert shown == mixed_by_numpy(out, [], unlikes, [cat], [dog])[0][:48]
    assert (
        found(kind="text", text="a t-shirt - -5 degrees")[0] == mixed_by_numpy(out, [], [], [no_rain])[0][:48]
    )
    assert found(kind="text", text="a cat -dog -“in the rain”")[0] == found(kind="text", text=words)[0]
    for asked, said in (
        ({"kind": "these"}, "choose some rows first"),
        ({"kind": "text", "text": "-dog"}, "give some that are, too"),
        ({"kind": "text", "text": " "}, "expected some words"),
        ({"kind": "these", "likes": (number[BAD],)}, "this row has no vector"),
        ({"kind": "these", "likes": (3, number[BAD])}, f"of the chosen rows {BAD} has no vector"),
    ):
        with pytest.raises(ConfigError, match=said):
            found(**asked)
    browser.close()
    half, high = np.cos(np.pi / 3), np.sin(np.pi / 3)
    with pytest.raises(ConfigError, match="cancel each other out"):
        mixed([np.array([half, high]), np.array([half, -high])], [np.array([3.0, 0.0])])


def test_by_keys_in_a_narrow_dark_window_without_a_model(out, open_page):
    with served(Browser(out)) as serving:
        page = open_page(serving.url, NARROW, "dark")
        page.wait_for_selector("#tiles .tile")
        assert page.is_disabled("#text")
        assert "--model names the text tower" in page.get_attribute("#text", "placeholder")
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
        page.evaluate("document.activeElement.blur()")
        first = shown(page)
        page.keyboard.press("ArrowDown")
        for press in ("ArrowRight", "Space", "ArrowDown", "Space"):
            page.keyboard.press(press)
        wide = page.evaluate(
            "[...at('tiles').children].filter((each, _, all) => each.offsetTop === all[0].offsetTop).length"
        )
        assert page.evaluate("[...chosen.values()].map((row) => row.key)") == [first[1], first[1 + wide]]
        while page.evaluate("document.activeElement.closest('.tile').row.key") == BAD:
            page.keyboard.press("ArrowRight")
        own = page.evaluate("document.activeElement.closest('.tile').row.key")
        page.keyboard.press("l")
        wait_for(page, keys(similar_to_key(out, own, top=20)))


def ask(serving, method="POST", path="/find", body=b"{}", token=True, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if token:
        headers["Cookie"] = f"curator-dask-{serving.port}={serving.token}"
    connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=10)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    read = answer.read().decode()
    connection.close()
    return answer.status, read, dict(answer.getheaders())


def test_who_may_ask(server):
    own = f"http://127.0.0.1:{server.port}"
    assert ask(server)[0] == ask(server, Origin=own, Sec_Fetch_Site="same-origin")[0] == 200
    assert ask(server, "GET", "/")[0] == ask(server, Host=f"localhost:{server.port}")[0] == 200
    status, said, _ = ask(server, token=False)
    assert status == 403 and "needs the token" in said
    for path in ("/", "/find", "/pictures", "/image", "/nothing"):
        for method in ("GET", "POST"):
            assert ask(server, method, path, token=False)[0] in (403, 405), path
            assert ask(server, method, f"{path}?token=wrong", token=False)[0] in (403, 405), path
    assert ask(server, Cookie=f"curator-dask-{server.port}=x", token=False)[0] == 403
    for refused in (
        {"Host": "evil.example"},
        {"Host": f"evil.example:{server.port}"},
        {"Host": "[::1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ):
        assert ask(server, **refused)[0] == 403, refused
    for path in ("/../../etc/passwd", "/etc/passwd", "/%2e%2e/etc/passwd", "//etc/passwd", "/static/page.js"):
        assert ask(server, "GET", path)[0] == 404
    # Who has no token is refused before a body is sent, so that none is kept.
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(b"POST /image HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999999\r\n\r\nx")
        assert b" 403 the URL needs the token" in connection.recv(1000)
    # The token is in the URL once, then in a cookie that scripts and other sites do not have.
    status, _, headers = ask(server, "GET", f"/?token={server.token}", token=False)
    assert (status, headers["Location"]) == (302, "/")
    assert {"HttpOnly", "SameSite=Strict"} <= {*headers["Set-Cookie"].split("; ")}
    _, text, headers = ask(server, "GET", "/")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'nonce-") and "unsafe" not in policy
    assert re.search("nonce-([^']+)", policy)[1] in text and server.token not in text
    assert headers["X-Content-Type-Options"] == "nosniff" and "Server" not in headers


def test_what_is_asked_badly(server):
    assert ask(server, body=b"no json")[0] == ask(server, body=b"[1]")[0] == 400
    for wrong in (
        {"start": -1},
        {"count": 0},
        {"count": 10**9},
        {"number": "1"},
        {"columns": [1]},
        {"seed": True},
        {"where": "\ud800 > 1"},
    ):
        assert ask(server, body=json.dumps(wrong).encode())[0] == 400, wrong
    for asked, said in (
        ({"kind": "like", "number": 10**6}, "there are 72"),
        ({"kind": "like"}, "there are 72"),
        ({"kind": "text", "text": " "}, "expected some words"),
        ({"kind": "image", "image": "../x"}, "not known any more"),
        ({"kind": "order", "column": "caption"}, "no such column of numbers"),
        ({"kind": "other"}, "expected one of"),
        ({"columns": ["/etc/passwd"]}, "no such column to show"),
        ({"where": "width >"}, "no condition of SQL"),
        ({"where": "key in (select 1)"}, "subquery"),
        ({"where": "read_text('/etc/passwd') is not null"}, "where="),
    ):
        status, answer, _ = ask(server, body=json.dumps(asked).encode())
        assert status == 200 and said in json.loads(answer)["error"], asked
    assert ask(server, path="/pictures", body=json.dumps({"numbers": list(range(100))}).encode())[0] == 400
    assert "there are 72" in ask(server, path="/pictures", body=b'{"numbers": [72]}')[1]
    assert "not an image" in ask(server, path="/image", body=b"GIF")[1]
    small = io.BytesIO()
    Image.new("1", (8, 8)).save(small, "PNG")
    head = b"IHDR" + struct.pack(">II", 30_000, 30_000) + small.getvalue()[24:29]  # says that it is large
    bomb = small.getvalue()[:12] + head + struct.pack(">I", zlib.crc32(head)) + small.getvalue()[33:]
    assert "pixels" in json.loads(ask(server, path="/image", body=bomb)[1])["error"]
    with suppress(ConnectionError, http.client.HTTPException):  # the server stops reading
        assert ask(server, path="/image", body=b"x" * (MOST_IMAGE + 1))[0] in (400, 413)
    row = KEYS.index(BAD)
    pictures = json.loads(ask(server, path="/pictures", body=json.dumps({"numbers": [row]}).encode())[1])
    assert "not an image" in pictures["pictures"][str(row)]


def test_by_an_index_and_without_vectors(out, model, tmp_path):
    exact = Browser(out, ClipTextEmbedder(str(model)))
    VectorIndex.build(out, tmp_path / "index")
    fast = Browser(out, ClipTextEmbedder(str(model)), index=VectorIndex(tmp_path / "index"))
    for look in (
        Look("text", text="a dog"),
        Look("like", number=5),
        Look("like", number=5, where="width > 9"),
    ):
        one, two = exact.find(look, 0, 60), fast.find(look, 0, 60)
        assert one.numbers.tolist() == two.numbers.tolist() and one.scores.tolist() == two.scores.tolist()
    assert "by an index: recall" in fast.searched
    none = Browser(out, ClipTextEmbedder(str(model)), column="other")
    assert none.searched == "no vectors" and none.why_no_text == "there are no vectors to compare with"
    assert len(none.find(Look(), 0, 48).numbers) == 48
    with pytest.raises(OutputError, match="has no column 'other' of vectors"):
        none.find(Look("text", text="a"), 0, 1)
    wide = Browser(out, caption="width")
    assert [row["caption"] for row in wide.rows.read([1, 0])] == ["7", "0"]
    with pytest.raises(ConfigError, match="caption='text': there is no such column"):
        Browser(out, caption="text")
    for each in (exact, fast, none, wide):
        each.close()


def test_of_stores_as_many_shards_stay_open_as_may(tmp_path, monkeypatch):
    """Each is a copy that was fetched: a shard that is closed too early is fetched again for the next picture."""
    opened = []
    monkeypatch.setattr("curator_dask.browsing.shards.is_remote", lambda url: True)
    monkeypatch.setattr(
        "curator_dask.browsing.shards.open_shard",
        lambda url, *rest: opened.append(url) or open_shard(url, *rest),
    )
    urls = [str(tmp_path / f"{shard}.tar") for shard in range(MOST_REMOTE + 1)]
    for url in urls:
        write_tar(Path(url), [("a.txt", b"")])
    shards = OpenShards()
    for url in [*urls[:MOST_REMOTE], *urls[:MOST_REMOTE]]:
        with shards(url):
            pass
    assert opened == urls[:MOST_REMOTE]
    for url in (urls[-1], urls[-1], urls[0]):  # the first had to go
        with shards(url):
            pass
    assert opened == [*urls, urls[0]]
    shards.close()


def test_a_shard_that_opens_slowly_keeps_no_other_waiting(out, monkeypatch):
    slow, fast = (str(out.parent / "data" / f"{shard}.tar") for shard in range(SHARDS))
    opening, go_on = threading.Event(), threading.Event()

    def slowly(url, *rest):
        if url == slow:
            opening.set()
            assert go_on.wait(20)
        return open_shard(url, *rest)

    monkeypatch.setattr("curator_dask.browsing.shards.open_shard", slowly)
    monkeypatch.setattr("curator_dask.browsing.shards.MOST", 1)
    shards, done = OpenShards(), []

    def read(url, shard):
        keys_there = [key_of(shard, row) for row in range(2)]
        pictures = dict(read_thumbnails(keys_there, [url] * 2, 32, opener=shards))
        done.extend(key for row, key in enumerate(keys_there) if isinstance(pictures[row], Image.Image))

    thread = threading.Thread(target=read, args=[slow, 0])
    thread.start()
    assert opening.wait(20)
    try:
        read(fast, 1)
        assert done == [key_of(1, 0), key_of(1, 1)]
        with shards(fast) as reader:  # stays open while it is read, though there is room for one
            go_on.set()
            thread.join(20)
            assert len(done) == 4 and reader.read(reader.index.samples[0].members[0])
    finally:
        go_on.set()
    shards.close()


def test_the_command_serves_until_it_is_interrupted(out):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "curator_dask.cli", "browse", str(out)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        said = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", said)
        connection = http.client.HTTPConnection("127.0.0.1", int(url[1]), timeout=10)
        connection.request("GET", "/", headers={"Cookie": f"curator-dask-{url[1]}={url[2]}"})
        assert f"{len(KEYS)} rows" in said and connection.getresponse().status == 200
        # It does not wait for an answer that takes a minute.
        long = json.dumps({"where": "levenshtein(repeat(key, 3000), repeat('x', 20000)) > 0"})
        asking = http.client.HTTPConnection("127.0.0.1", int(url[1]), timeout=10)
        asking.request("POST", "/find", long, {"Cookie": f"curator-dask-{url[1]}={url[2]}"})
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 130 and error.strip() == "interrupted: the page is closed"
    wrong = CliRunner().invoke(app, ["browse", str(out), "--workers", "2"])
    assert wrong.exit_code == 2 and "--index" in wrong.output
