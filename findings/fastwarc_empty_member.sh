#!/usr/bin/env bash
# FastWARC takes a gzip member without content for the end of a WARC file: the records behind it are lost without a word.
#
# gzip allows members without content (RFC 1952), and so programs write them that put files together, or that close a
# member that nothing was written to. gzip, zcat and Python's gzip read on behind them, and so does warcio.
#
# Seen with fastwarc 2.0.1 and warcio 1.8.1, Python 3.11: of five records with an empty member behind the second FastWARC
# gives two, warcio five. Without the empty member both give five.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet fastwarc==2.0.1 warcio==1.8.1
"$folder/venv/bin/python" - <<'EOF'
import gzip
import io

from fastwarc.warc import ArchiveIterator
from warcio.archiveiterator import ArchiveIterator as Warcio


def record(number):
    fields = {
        "WARC-Type": "metadata",
        "WARC-Target-URI": f"http://site.test/{number}",
        "WARC-Date": "2024-01-01T00:00:00Z",
        "WARC-Record-ID": f"<urn:uuid:00000000-0000-0000-0000-00000000000{number}>",
        "Content-Type": "application/json",
        "Content-Length": "2",
    }
    lines = [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join(["WARC/1.0", *lines, "", "{}", "", ""]).encode()


members = [gzip.compress(record(number)) for number in range(5)]
with_empty = b"".join([*members[:2], gzip.compress(b""), *members[2:]])
assert gzip.decompress(with_empty).count(b"WARC/1.0") == 5


def counted(data):
    return sum(1 for _ in ArchiveIterator(io.BytesIO(data))), sum(1 for _ in Warcio(io.BytesIO(data)))


plain, empty = counted(b"".join(members)), counted(with_empty)
print(f"records of five, by FastWARC and warcio: {plain}; with an empty member behind the second: {empty}")
assert plain == (5, 5), plain
assert empty == (2, 5), empty
EOF
