#!/usr/bin/env bash
# FastWARC knows a record's type and length by names of fields written just as the standard prints them: in small letters
# they are none, though names of fields have no case (ISO 28500, as in RFC 2822).
#
# Seen with fastwarc 2.0.1 and warcio 1.8.1, Python 3.11: of a record with "warc-type" the type is unknown, so that
# record_types passes it over; with "content-length" the record has no bytes, and behind it OSError says "Invalid WARC
# header". The same fields are found by headers.get() in any case. warcio reads both.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet fastwarc==2.0.1 warcio==1.8.1
"$folder/venv/bin/python" - <<'EOF'
import io

from fastwarc.warc import ArchiveIterator, WarcRecordType
from warcio.archiveiterator import ArchiveIterator as Warcio


def record(change):
    fields = {
        "WARC-Type": "metadata",
        "WARC-Target-URI": "http://site.test/",
        "WARC-Date": "2024-01-01T00:00:00Z",
        "WARC-Record-ID": "<urn:uuid:00000000-0000-0000-0000-000000000001>",
        "Content-Type": "application/json",
        "Content-Length": "2",
    }
    lines = [f"{name.lower() if name == change else name}: {value}" for name, value in fields.items()]
    return "\r\n".join(["WARC/1.0", *lines, "", "{}", "", ""]).encode()


def read(change):
    first = next(iter(ArchiveIterator(io.BytesIO(record(change)))))
    fast = [(first.record_type == WarcRecordType.metadata, first.reader.read())]
    slow = [(each.rec_type, each.raw_stream.read()) for each in Warcio(io.BytesIO(record(change)))]
    return fast, slow


for change in ("", "WARC-Type", "Content-Length"):
    fast, slow = read(change)
    print(f"in small letters {change or 'nothing'}: FastWARC {fast}, warcio {slow}")
    assert slow == [("metadata", b"{}")], slow
    assert fast == [(change != "WARC-Type", b"" if change == "Content-Length" else b"{}")], fast
    named = next(iter(ArchiveIterator(io.BytesIO(record(change))))).headers
    assert named.get("WARC-Type") == "metadata" and named.get("Content-Length") == "2"
only = sum(1 for _ in ArchiveIterator(io.BytesIO(record("WARC-Type")), record_types=WarcRecordType.metadata))
assert only == 0, only
EOF
