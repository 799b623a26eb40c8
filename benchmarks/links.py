"""How near `links` is to a bare loop over FastWARC and msgspec, on a WAT file that is made.

    python -m benchmarks.links

Pages have 60 links, 25 of them images, of which half have a caption. Both read the same file in one process, five
times, in turns; seconds are of the processor. The loop inflates by FastWARC, reads the same fields, joins addresses by
`urllib` and writes a table, without sorting, counting, digests, or looking for what is there again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from urllib.parse import urljoin

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from fastwarc.warc import ArchiveIterator, WarcRecordType

from curator_dask.crawls import extract_links

ROUNDS = 5


def make(path: Path, pages: int) -> int:
    """Write a WAT; returns how many bytes of JSON it has."""
    pick = random.Random(0)
    words = ["".join(pick.choices("etaoinshrdlucmfw", k=pick.randint(2, 9))) for _ in range(20_000)]
    total = 0
    with path.open("wb") as file:
        for number in range(pages):
            url = f"https://{pick.choice(words)}.test/{pick.choice(words)}/{number}.html"
            links = []
            for _ in range(35):
                text = " ".join(pick.choices(words, k=4))
                links.append(
                    {"path": "A@/href", "url": f"/{pick.choice(words)}/{pick.choice(words)}", "text": text}
                )
            for _ in range(25):
                form = pick.choice(["https://cdn.test/{}.jpg", "/images/{}.jpg", "../{}.png?w=300"])
                alt = " ".join(pick.choices(words, k=7)) if pick.random() < 0.5 else ""
                links.append({"path": "IMG@/src", "url": form.format(pick.choice(words)), "alt": alt})
            envelope = {
                "WARC-Header-Metadata": {
                    "WARC-Type": "response",
                    "WARC-Target-URI": url,
                    "WARC-Date": "2024-05-18T01:58:10Z",
                },
                "Payload-Metadata": {
                    "HTTP-Response-Metadata": {
                        "Headers": {"Content-Type": "text/html", "Server": "nginx", "Date": "x" * 30},
                        "HTML-Metadata": {"Head": {"Title": text}, "Links": links},
                    }
                },
            }
            body = json.dumps({"Container": {"Offset": str(number)}, "Envelope": envelope}).encode()
            total += len(body)
            head = [
                "WARC/1.0",
                "WARC-Type: metadata",
                f"WARC-Target-URI: {url}",
                "Content-Type: application/json",
                f"Content-Length: {len(body)}",
            ]
            file.write(gzip.compress("\r\n".join([*head, "", ""]).encode() + body + b"\r\n\r\n", 6))
    return total


def bare(path: Path, output: Path) -> int:
    """The loop; returns how many links it has found."""
    decoder = msgspec.json.Decoder()
    urls, captions, pages = [], [], []
    with path.open("rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.metadata, parse_http=False):
            envelope = decoder.decode(record.reader.read())["Envelope"]
            page = envelope["WARC-Header-Metadata"]["WARC-Target-URI"]
            html = envelope["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]
            for link in html["Links"]:
                if link["path"] == "IMG@/src" and link.get("alt"):
                    urls.append(urljoin(page, link["url"]))
                    captions.append(link["alt"])
                    pages.append(page)
    pq.write_table(pa.table({"url": urls, "caption": captions, "page": pages}), output, compression="zstd")
    return len(urls)


def main(given: list[str] | None = None) -> dict[str, float]:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--quick", action="store_true", help="few pages, to see that the script works")
    quick = arguments.parse_args(given).quick
    pages = 300 if quick else 20_000
    seconds: dict[str, list[float]] = {"links": [], "bare": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = make(folder / "made.wat.gz", pages)
        for _ in range(1 if quick else ROUNDS):
            shutil.rmtree(folder / "out", ignore_errors=True)
            start = time.process_time()
            summary = extract_links(folder / "made.wat.gz", folder / "out")
            seconds["links"].append(time.process_time() - start)
            start = time.process_time()
            count = bare(folder / "made.wat.gz", folder / "bare.parquet")
            seconds["bare"].append(time.process_time() - start)
            assert summary.rows + summary.again == count, (summary, count)
    ratio = median(bare / links for links, bare in zip(seconds["links"], seconds["bare"], strict=True))
    found = {
        "images_a_second": summary.images / median(seconds["links"]),
        "megabytes_of_json_a_second": size / 1e6 / median(seconds["links"]),
        "of_the_bare_loop": ratio,
        "least": min(bare / links for links, bare in zip(seconds["links"], seconds["bare"], strict=True)),
        "most": max(bare / links for links, bare in zip(seconds["links"], seconds["bare"], strict=True)),
    }
    for name, value in found.items():
        print(f"{name}: {value:,.3g}" if value < 100 else f"{name}: {value:,.0f}")
    return found


if __name__ == "__main__":
    main()
