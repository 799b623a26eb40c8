"""Links out of crawls: which images are taken, each once, whatever comes between."""

from __future__ import annotations

import gzip
import html
import json
import re
import subprocess
import sys
import tarfile
import time
from datetime import UTC, datetime
from html.parser import HTMLParser
from urllib.parse import urljoin

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_servers import ImageServer, picture_of
from s3 import BUCKET, options, s3_server
from typer.testing import CliRunner

from curator_dask import fetch_images
from curator_dask.cli import app
from curator_dask.crawls import LinkRules, extract_links
from curator_dask.crawls.rules import uid_of
from curator_dask.curation import Recipe, curate
from curator_dask.errors import ConfigError, DatasetError, OutputError, ShardError
from curator_dask.removing import remove_samples


@pytest.fixture(autouse=True)
def here_without_a_cluster(request):
    if "client" not in request.fixturenames:
        request.getfixturevalue("in_this_process")


DATE = "2024-05-18T01:58:10Z"


def record(kind, url, body, content_type="application/json", small=False):
    fields = {
        "WARC-Type": kind,
        "WARC-Target-URI": url,
        "WARC-Date": DATE,
        "WARC-Record-ID": f"<urn:uuid:{abs(hash((kind, url)))}>",
        "Content-Type": content_type,
        "Content-Length": str(len(body)),
    }
    lines = [f"{name.lower() if small else name}: {value}" for name, value in fields.items()]
    return "\r\n".join(["WARC/1.0", *lines, "", ""]).encode() + body + b"\r\n\r\n"


def wat(url, links, base=None, language=None, headers=None, **how):
    """The records of a page as Common Crawl's WAT has them: of its response, and of what was detected in it."""
    page = {
        "Container": {"Filename": "x.warc.gz", "Compressed": True},
        "Envelope": {
            "Format": "WARC",
            "WARC-Header-Length": "583",
            "WARC-Header-Metadata": {
                "WARC-Type": "response",
                "WARC-Target-URI": url,
                "WARC-Date": DATE,
                "Content-Type": "application/http; msgtype=response",
            },
            "Payload-Metadata": {
                "Actual-Content-Type": "application/http; msgtype=response",
                "HTTP-Response-Metadata": {
                    "Response-Message": {"Status": "200", "Version": "HTTP/1.1", "Reason": "OK"},
                    "Headers": {"Content-Type": "text/html", **(headers or {})},
                    "HTML-Metadata": {
                        "Head": {"Title": "A page", **({"Base": base} if base else {})},
                        "Links": links,
                    },
                },
            },
        },
    }
    records = [record("metadata", url, json.dumps(page).encode(), **how)]
    if language is not None:
        told = json.dumps({"reliable": True, "languages": [{"code": language, "code-iso-639-3": "xxx"}]})
        more = {
            "Metadata-Records": [
                {"Name": "fetchTimeMs", "Value": "9"},
                {"Name": "languages-cld2", "Value": told},
            ]
        }
        envelope = {
            "WARC-Header-Metadata": {"WARC-Type": "metadata", "WARC-Target-URI": url, "WARC-Date": DATE},
            "Payload-Metadata": {"WARC-Metadata-Metadata": more},
        }
        records.append(record("metadata", url, json.dumps({"Envelope": envelope}).encode(), **how))
    return records


def image(url, alt=None, path="IMG@/src", **more):
    return {"path": path, "url": url, **({} if alt is None else {"alt": alt}), **more}


def save(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(gzip.compress, records)))


def crawl_of(folder, files=3, pages=20, host="http://site.test"):
    """Pages with images of their own, and some that all pages have; returns the links, in their order."""
    links = []
    for number in range(files):
        records = [record("warcinfo", "", b"software: none\r\n", "application/warc-fields")]
        for page in range(pages):
            url = f"{host}/{number}/{page}.html"
            found = [
                image(f"/images/{number}-{page}.jpg", f"picture of page {page} &amp; file {number}"),
                image("logo.png", "the logo of all", "IMG@/src"),
                image("/empty.jpg", ""),
                {"path": "A@/href", "url": "/next", "text": "next page"},
            ]
            records += wat(url, found, language="de" if page % 3 else "en")
            links += [(urljoin(url, each["url"]), html.unescape(each.get("alt") or "")) for each in found[:3]]
        save(folder / f"{number:05d}.warc.wat.gz", records)
    return links


def rows_of(folder):
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.parquet"))).to_pylist()


def told(summary):
    """The counts of a summary add up."""
    assert summary.images == summary.rows + summary.again + summary.removed + sum(summary.left_out.values())
    return summary


def test_each_link_is_there_once_over_all_files(tmp_path, client):
    links = crawl_of(tmp_path / "crawl")
    summary = told(extract_links(tmp_path / "crawl", tmp_path / "out", rows_per_file=40))
    wanted = dict.fromkeys((url, caption) for url, caption in links if caption)
    rows = rows_of(tmp_path / "out")
    assert {(row["url"], row["caption"]) for row in rows} == {*wanted} and len(rows) == len(wanted)
    assert summary.rows == len(wanted) and summary.complete
    assert (summary.files, summary.read, summary.pages, summary.images) == (3, 3, 60, 180)
    assert summary.left_out == {"without a caption": 60}
    # The logo of each folder of pages is there once.
    assert summary.again == 60 - 3
    assert len([*(tmp_path / "out").glob("*.parquet")]) == 2
    assert [row["uid"] for row in rows] == sorted(uid_of(row["url"], row["caption"]) for row in rows)
    for row in rows:
        number, page = re.fullmatch(r"http://site.test/(\d)/(\d+).html", row["page_url"]).groups()
        first = not row["url"].endswith("logo.png")
        assert row["caption"] == (f"picture of page {page} & file {number}" if first else "the logo of all")
        assert page == "0" or first  # of those that are the same, the first stays
        assert row["page_language"] == ("de" if int(page) % 3 else "en")
        assert row["crawl_date"] == datetime(2024, 5, 18, 1, 58, 10, tzinfo=UTC)
    assert not (tmp_path / "out.work").exists()

    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    again = told(extract_links(tmp_path / "crawl", tmp_path / "out", rows_per_file=40))
    assert again.output.skipped == 2 and (again.read, again.output.written) == (0, 0)
    assert {name: getattr(again, name) for name in ("rows", "again", "pages", "left_out")} == {
        name: getattr(summary, name) for name in ("rows", "again", "pages", "left_out")
    }
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}


def test_the_same_table_whatever_the_number_of_ranges(tmp_path):
    crawl_of(tmp_path / "crawl")
    for name, rows in (("one", 1_000), ("many", 7)):
        extract_links(tmp_path / "crawl", tmp_path / name, rows_per_file=rows)
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "many")
    assert len([*(tmp_path / "many").glob("*.parquet")]) > 5


def one_page(tmp_path, links, page="http://a.test/b/c.html", name="one", rules=None, **more):
    save(tmp_path / name / "0.wat.gz", wat(page, links, **more))
    summary = told(extract_links(tmp_path / name, tmp_path / f"{name}.out", **(rules or {})))
    return rows_of(tmp_path / f"{name}.out"), summary


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("http://b.test/x.jpg", "http://b.test/x.jpg"),
        ("HTTPS://b.test/X.JPG?a=1&amp;b=2#top", "https://b.test/X.JPG?a=1&b=2"),
        ("//b.test/x.jpg", "http://b.test/x.jpg"),
        ("/x/y.jpg", "http://a.test/x/y.jpg"),
        ("/x/../y.jpg", "http://a.test/y.jpg"),
        ("y.jpg", "http://a.test/b/y.jpg"),
        ("../y.jpg?z", "http://a.test/y.jpg?z"),
        ("?z=1", "http://a.test/b/c.html?z=1"),
        (" \n/with\n space .jpg ", "http://a.test/with%20space%20.jpg"),
        ("data:image/gif;base64,R0lGODlhAQABAAAAACw=", "within the page, or not of http"),
        ("ftp://b.test/x.jpg", "within the page, or not of http"),
        ("blob:http://b.test/1", "within the page, or not of http"),
        ("http://[bad/x.jpg", None),
        ("", "without an address"),
        (None, "without an address"),
        ("/x.svg?v=2", "SVG or an icon"),
        ("/favicon.ico", "SVG or an icon"),
        ("/" + "x" * 2048, "with a caption or address that is too long"),
    ],
)
def test_addresses_are_those_that_a_browser_asks_for(tmp_path, given, wanted):
    rows, summary = one_page(tmp_path, [image(given, "a caption")])
    if wanted is None:  # some such addresses are refused by later Pythons, all by a fetch
        return
    if wanted.startswith("http"):
        assert [row["url"] for row in rows] == [wanted]
    else:
        assert not rows and summary.left_out == {wanted: 1}


def test_relative_addresses_are_of_the_base(tmp_path):
    rows, _ = one_page(tmp_path, [image("x.jpg", "a caption")], base="//cdn.test/images/")
    assert rows[0]["url"] == "http://cdn.test/images/x.jpg"
    rows, _ = one_page(
        tmp_path, [{"path": "__base__", "url": "/other/"}, image("x.jpg", "a caption")], name="older"
    )
    assert rows[0]["url"] == "http://a.test/other/x.jpg"


def test_captions(tmp_path):
    captions = [
        "  A\n\tdog &amp; a cat ",
        "four",
        "x" * 5000,
        "caf&eacute; \ud83d",
        "one two three",
        None,
        " \n",
    ]
    links = [image(f"/{number}.jpg", caption) for number, caption in enumerate(captions)]
    rows, summary = one_page(tmp_path, links)
    found = {row["url"].rpartition("/")[2]: row["caption"] for row in rows}
    assert found["0.jpg"] == "A dog & a cat" and found["4.jpg"] == "one two three"
    assert found.get("3.jpg", "café ?").startswith("café ")
    assert summary.left_out["with a caption that is too short"] == 1
    assert summary.left_out["with a caption or address that is too long"] == 1
    assert summary.left_out["without a caption"] == 2
    rows, _ = one_page(tmp_path, links, name="words", rules={"min_characters": 1, "min_words": 3})
    assert {row["caption"] for row in rows} == {"A dog & a cat", "one two three"}


def test_an_address_may_be_there_once(tmp_path):
    links = [
        image("/a.jpg", "first caption"),
        image("/a.jpg", "second caption"),
        image("/a.jpg", "first caption"),
    ]
    assert len(one_page(tmp_path, links)[0]) == 2
    rows, summary = one_page(tmp_path, links, name="url", rules={"unique": "url"})
    assert [row["caption"] for row in rows] == ["first caption"] and summary.again == 2
    assert rows[0]["uid"] == uid_of("http://a.test/a.jpg", None)


def test_languages(tmp_path):
    pages = [("de", None), ("zh-Hant", None), (None, "en-US, fr"), (None, None)]
    records = []
    for number, (detected, said) in enumerate(pages):
        headers = {} if said is None else {"content-language": said}
        found = [image(f"/{number}.jpg", "a caption")]
        records += wat(f"http://a.test/{number}", found, language=detected, headers=headers)
    save(tmp_path / "crawl" / "0.warc.wat.gz", records)
    extract_links(tmp_path / "crawl", tmp_path / "all")
    languages = {row["page_url"][-1]: row["page_language"] for row in rows_of(tmp_path / "all")}
    assert languages == {"0": "de", "1": "zh-hant", "2": "en-us", "3": None}
    summary = told(extract_links(tmp_path / "crawl", tmp_path / "some", languages=["EN", "zh"]))
    assert {row["page_url"][-1] for row in rows_of(tmp_path / "some")} == {"1", "2"}
    assert summary.left_out == {"of a page in another language": 2}


# WARC: the HTML itself

PAGE = """<!doctype html><html lang="fr-CA"><head><base href="/base/"><title>é</title></head><body>
<img src="un.jpg" alt="Un   été à la mer"><IMG SRC='/deux.png' ALT='deux &amp; trois'>
<img data-src="lazy.jpg" src="data:image/gif;base64,AAAA" alt="shown when it is seen">
<img srcset="s.jpg 480w, l.jpg 800w" alt="of several sizes"><img src="none.jpg"><img src="empty.jpg" alt="">
<noscript><img src="plain.jpg" alt="without a script"></noscript></body></html>"""


def response(url, body, content_type="text/html", encoding=None):
    more = f"\r\nContent-Encoding: {encoding}" if encoding else ""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}{more}\r\nContent-Length: {len(body)}\r\n\r\n"
    return record("response", url, head.encode() + body, "application/http; msgtype=response")


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"%s\r\n<img alt='in chunks' src='%s'>      \r\n0\r\n\r\n"
)


class Images(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.found.append(dict(attributes))


@pytest.mark.parametrize(
    "charset, said, encoding",
    [
        ("utf-8", "", None),
        ("latin-1", "; charset=ISO-8859-1", None),
        ("cp1252", "", None),
        ("utf-8", "", "gzip"),
    ],
)
def test_pages_of_a_warc(tmp_path, charset, said, encoding):
    body = PAGE.encode(charset)
    body = gzip.compress(body) if encoding else body
    url = "http://a.test/dir/page.html"
    detected = b'languages-cld2: {"languages": [{"code": "fr"}]}\r\n'
    records = [
        record("request", url, b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request"),
        response(url, body, f"text/html{said}", encoding),
        record("metadata", url, b"fetchTimeMs: 9\r\n" + detected, "application/warc-fields"),
        response("http://a.test/x.jpg", b"\xff\xd8\xff", "image/jpeg"),
        record("response", url, b"no HTTP at all", "application/http; msgtype=response"),
        record("response", url, CHUNKED % (b"28", b"/c.jpg"), "application/http; msgtype=response"),
        record("response", url, CHUNKED % (b"zz", b"/none.jpg"), "application/http; msgtype=response"),
        response("http://a.test/2", b"<p><img src=x.jpg alt='no language'>"),
    ]
    save(tmp_path / "crawl" / "0.warc.gz", records)
    summary = told(extract_links(tmp_path / "crawl", tmp_path / "out"))
    found = {row["url"]: (row["caption"], row["page_language"]) for row in rows_of(tmp_path / "out")}
    assert found.pop("http://a.test/x.jpg") == ("no language", None)
    assert found.pop("http://a.test/c.jpg") == ("in chunks", None)
    wanted = {}
    for each in Images(PAGE).found:  # Python's own parser
        address = each.get("data-src") or each.get("src") or each["srcset"].split(", ")[-1].split()[0]
        if caption := " ".join((each.get("alt") or "").split()):
            wanted[urljoin("http://a.test/base/", address)] = (caption, "fr")
    assert found == wanted and len(wanted) == 5
    assert summary.pages == 3 and summary.passed_over == 2 and summary.complete


# Files that are not as they should be


def test_a_member_without_content_ends_no_file(tmp_path):
    """FastWARC 2.0.1 takes it for the end: findings/fastwarc_empty_member.sh."""
    records = [
        each for n in range(6) for each in wat(f"http://a.test/{n}", [image(f"/{n}.jpg", "a caption")])
    ]
    save(tmp_path / "crawl" / "0.wat.gz", [*records[:2], b"", *records[2:]])
    summary = extract_links(tmp_path / "crawl", tmp_path / "out")
    assert summary.rows == 6 and summary.complete


def test_fields_in_small_letters(tmp_path):
    """FastWARC 2.0.1 does not know the type of such a record: findings/fastwarc_case_of_fields.sh."""
    records = wat("http://a.test/", [image("/a.jpg", "a caption")], language="nl", small=True)
    save(tmp_path / "none" / "0.wat.gz", records)
    damaged = extract_links(tmp_path / "none", tmp_path / "none.out").damaged
    assert (
        "expected a field Content-Length, written so, found '" in damaged[str(tmp_path / "none" / "0.wat.gz")]
    )
    save(
        tmp_path / "some" / "0.wat.gz",
        [each.replace(b"content-length", b"Content-Length") for each in records],
    )
    assert extract_links(tmp_path / "some", tmp_path / "some.out").complete
    assert [row["page_language"] for row in rows_of(tmp_path / "some.out")] == ["nl"]


def test_one_member_and_no_gzip(tmp_path):
    records = b"".join(wat("http://a.test/", [image("/a.jpg", "a caption")], language="en"))
    for name, content in (("whole.wat.gz", gzip.compress(records)), ("plain.wat", records)):
        (tmp_path / name).write_bytes(content)
        assert extract_links(tmp_path / name, tmp_path / f"{name}.out").rows == 1


def cut(content):
    return content[: -len(content) // 4]


def garbled(content):
    middle = len(content) // 2
    return content[:middle] + bytes(64) + content[middle + 64 :]


@pytest.mark.parametrize("damage", [cut, garbled])
def test_a_damaged_file_is_read_as_far_as_it_goes(tmp_path, damage):
    crawl_of(tmp_path / "crawl", 2, 30)
    whole, path = (
        (tmp_path / "crawl" / "00001.warc.wat.gz").read_bytes(),
        tmp_path / "crawl" / "00001.warc.wat.gz",
    )
    path.write_bytes(damage(whole))
    summary = told(extract_links(tmp_path / "crawl", tmp_path / "out"))
    assert not summary.complete and [*summary.damaged] == [str(path)] and 35 < summary.pages < 60
    assert "after" in summary.damaged[str(path)] and "00001.warc.wat.gz" in str(summary)
    assert len(rows_of(tmp_path / "out")) == summary.rows > 32
    again = told(extract_links(tmp_path / "crawl", tmp_path / "out"))
    assert (again.read, again.damaged, again.rows) == (0, summary.damaged, summary.rows)
    path.write_bytes(whole)  # mended: it alone is read again
    mended = told(extract_links(tmp_path / "crawl", tmp_path / "out"))
    assert mended.complete and mended.read == 1 and mended.pages == 60
    assert extract_links(tmp_path / "crawl", tmp_path / "whole").rows == mended.rows
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "out")


def test_records_that_are_none_are_passed_over(tmp_path):
    good = wat("http://a.test/1", [image("/1.jpg", "a caption")])
    odd = [
        b"{",
        b"[]",
        b'{"Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": {"Links": 3}}}}}',
    ]
    records = [record("metadata", "http://a.test/x", body) for body in odd]
    save(tmp_path / "crawl" / "0.wat.gz", [*records, *good])
    (tmp_path / "crawl" / "1.wat.gz").write_bytes(gzip.compress(b"<html>404 not found</html>"))
    summary = told(extract_links(tmp_path / "crawl", tmp_path / "out"))
    assert summary.rows == 1 and summary.passed_over == 3
    assert [*summary.damaged] == [str(tmp_path / "crawl" / "1.wat.gz")]


# Lists, stores, refusals, going on


def test_a_list_of_files_and_one_that_is_not_there(tmp_path):
    crawl_of(tmp_path / "data" / "crawl", 3, 4)
    names = [f"crawl/0000{number}.warc.wat.gz" for number in (2, 0, 9)]
    (tmp_path / "wat.paths.gz").write_bytes(gzip.compress("\n".join([*names, ""]).encode()))
    summary = told(extract_links(tmp_path / "wat.paths.gz", tmp_path / "out", prefix=str(tmp_path / "data")))
    assert (summary.files, summary.read) == (3, 2) and not summary.complete
    (missing,) = summary.failed
    assert missing.endswith("00009.warc.wat.gz") and "is it still there?" in summary.failed[missing]
    logos = [row["page_url"] for row in rows_of(tmp_path / "out") if row["caption"] == "the logo of all"]
    assert {each.split("/")[3] for each in logos} == {"0", "2"}
    assert extract_links(
        tmp_path / "wat.paths.gz", tmp_path / "f", prefix=str(tmp_path / "data"), first=2
    ).complete
    # The file is there now: it alone is read, and its links come to the others.
    (tmp_path / "data" / names[2]).write_bytes(
        (tmp_path / "data" / "crawl" / "00001.warc.wat.gz").read_bytes()
    )
    more = told(extract_links(tmp_path / "wat.paths.gz", tmp_path / "out", prefix=str(tmp_path / "data")))
    assert more.complete and more.read == 1 and more.rows == 15


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("crawl.txt", "a.tar\n", "expected a path of a WAT or WARC file a line"),
        ("empty.paths", "\n", "found no line"),
        ("nothing.warc.gz", None, "there is no such file"),
        ("folder", None, "found no file"),
    ],
)
def test_what_is_no_crawl_is_told(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    done = CliRunner().invoke(app, ["links", str(tmp_path / name), str(tmp_path / "out")])
    assert done.exit_code == 2 and said in " ".join(done.output.split()), done.output


def test_refusals(tmp_path):
    crawl_of(tmp_path / "crawl", 1, 2)
    for wrong in ({"min_words": 0}, {"unique": "all"}, {"languages": "en"}, {"languages": ["english!"]}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            LinkRules(**wrong)
    with pytest.raises(ConfigError, match="--prefix"):
        extract_links(tmp_path / "crawl", tmp_path / "out", prefix="s3://x/")
    extract_links(tmp_path / "crawl", tmp_path / "out")
    with pytest.raises(OutputError, match="other settings"):
        extract_links(tmp_path / "crawl", tmp_path / "out", min_words=2)
    crawl_of(tmp_path / "other", 2, 2)
    for place in ("other", "other/00001.warc.wat.gz"):  # somebody's table is not replaced by another crawl's
        with pytest.raises(OutputError, match="has the links of 1 other files"):
            extract_links(tmp_path / place, tmp_path / "out")
    assert extract_links(tmp_path / "crawl", tmp_path / "out", min_words=4, overwrite=True).rows == 3
    with pytest.raises(DatasetError):
        extract_links(tmp_path / "out", tmp_path / "more")


def test_links_that_were_taken_down_do_not_come_back(tmp_path):
    crawl_of(tmp_path / "crawl", 2, 5)
    extract_links(tmp_path / "crawl", tmp_path / "out", keep_work=True)
    gone = "http://site.test/images/1-3.jpg"
    (tmp_path / "optout.txt").write_text(f"{gone}\n")
    remove_samples([tmp_path / "out"], tmp_path / "optout.txt", on="url")
    assert gone not in {row["url"] for row in rows_of(tmp_path / "out")}
    crawl_of(tmp_path / "crawl", 3, 5)
    more = told(extract_links(tmp_path / "crawl", tmp_path / "out"))
    assert more.removed == 1 and gone not in {row["url"] for row in rows_of(tmp_path / "out")}


def test_a_crawl_in_a_store(tmp_path):
    crawl_of(tmp_path / "crawl", 2, 6)
    with s3_server() as server:
        place = {"storage_options": options(server), "rows_per_file": 10}
        store = fsspec.filesystem("s3", **options(server), use_listings_cache=False)
        store.put(str(tmp_path / "crawl"), f"{BUCKET}/crawl", recursive=True)
        summary = told(extract_links(f"s3://{BUCKET}/crawl", f"s3://{BUCKET}/links", **place))
        here = extract_links(tmp_path / "crawl", tmp_path / "out", rows_per_file=10)
        assert summary.rows == here.rows == 14 and summary.complete
        names = [name.rpartition("/")[2] for name in store.find(f"{BUCKET}/links")]
        assert names == ["links-00000.parquet", "links-00001.parquet"] and not store.find(
            f"{BUCKET}/links.work"
        )
        store.get(f"{BUCKET}/links", str(tmp_path / "copy"), recursive=True)
        assert rows_of(tmp_path / "copy") == rows_of(tmp_path / "out")
        again = extract_links(f"s3://{BUCKET}/crawl", f"s3://{BUCKET}/links", **place)
        assert (again.read, again.rows, again.output.skipped) == (0, 14, 2)


def test_what_was_read_before_a_kill_is_not_read_again(tmp_path):
    crawl_of(tmp_path / "crawl", 12, 1500)
    command = [sys.executable, "-m", "curator_dask", "links", "crawl", "out", "--workers", "1"]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found, end = tmp_path / "out.work" / "found", time.monotonic() + 60
    while len([*found.glob("*.parquet")]) < 3:
        assert time.monotonic() < end and run.poll() is None
        time.sleep(0.005)
    run.kill()
    run.wait()
    before = len([*found.glob("*.parquet")])
    summary = told(extract_links(tmp_path / "crawl", tmp_path / "out"))
    assert summary.complete and summary.read <= 12 - before < 12
    assert extract_links(tmp_path / "crawl", tmp_path / "whole").rows == summary.rows
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "out")


def test_a_fetch_takes_the_table(tmp_path):
    with ImageServer() as server:
        for number in range(3):
            numbers = range(4 * number, 4 * number + 6)  # two of each are in the next file, too
            links = [image(f"/n/{each}.jpg", f"picture number {each}") for each in numbers]
            save(tmp_path / "crawl" / f"{number}.wat.gz", wat(server.url(f"page{number}"), links))
        report, out = str(tmp_path / "told.json"), tmp_path / "out"
        done = CliRunner().invoke(app, ["links", str(tmp_path / "crawl"), str(out), "--json", report])
        assert done.exit_code == 0 and "14 links, of 18 images of 3 pages in 3 files" in done.output, (
            done.output
        )
        assert json.loads((tmp_path / "told.json").read_text())["again"] == 4
        fetched = fetch_images(
            out, tmp_path / "shards", url_column="url", caption_column="caption", allow_private=True
        )
    assert (fetched.rows, fetched.failed) == (14, 0)
    found = {}
    for path in (tmp_path / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    numbers = [int(sample["txt"].decode().removeprefix("picture number ")) for sample in found.values()]
    assert sorted(numbers) == [*range(14)]
    for number, sample in zip(numbers, found.values(), strict=True):
        assert picture_of(number) in sample.values()


def test_a_recipe_begins_with_a_crawl(tmp_path):
    with ImageServer() as server:
        links = [image(f"/n/{each}.jpg", f"picture number {each}") for each in range(9)]
        save(
            tmp_path / "crawl" / "0.wat.gz",
            wat(server.url("page"), [*links, image("/status/404.jpg", "is gone")]),
        )
        crawl = {"crawl": str(tmp_path / "crawl"), "min_words": 2}
        recipe = Recipe(
            fetch={"links": crawl, "allow_private": True, "retries": 0},
            where="width >= 21",
        )
        summary = curate(tmp_path / "images", tmp_path / "out", recipe)
        again = curate(tmp_path / "images", tmp_path / "out", recipe)
        with pytest.raises(ConfigError, match="append"):
            curate(tmp_path / "images", tmp_path / "out", recipe, append=True)
    assert summary.rows == 10 and summary.unfetched == 1 and summary.steps["links"].rows == 10
    kept = sorted(row["caption"] for row in rows_of(tmp_path / "out" / "shards"))
    assert kept == [f"picture number {each}" for each in range(9) if 20 + each % 7 >= 21]
    assert (again.kept, again.steps["links"].read) == (len(kept), 0)
    (tmp_path / "crawl" / "1.wat.gz").symlink_to(tmp_path / "nowhere.wat.gz")
    with pytest.raises(ShardError, match=r"1\.wat\.gz: .*Nothing was fetched"):
        curate(tmp_path / "images", tmp_path / "out", recipe)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"links": "wat.paths.gz"}, r"expected {crawl: wat.paths.gz}"),
        ({"links": {"min_words": 3}}, "expected a crawl"),
        ({"links": {"crawl": "x", "min_word": 3}}, "min_word"),
        ({"links": {"crawl": "x", "unique": "all"}}, "unique"),
        ({"links": {"crawl": "x"}, "table": "t"}, "leave out table"),
        ({"caption_column": "x"}, "or, to make one of a crawl"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_told_at_once(given, said):
    with pytest.raises(ConfigError, match=said):
        Recipe(fetch=given, statistics=["width"])
