#!/usr/bin/env bash
# pyarrow 26.0.1: a page of a column of images has 1,024 of them, whatever its limits in bytes say.
# `data_page_size` and `dictionary_pagesize_limit`, of 1 MiB both, are looked at after every 1,024 values
# (`write_batch_size`) and not before. So `write_table`, and `to_parquet` of pandas, put the first 1,024 images of a row
# group into one dictionary page: 51 MB of images of 50 kB, 1 GB of images of 1 MB. Without a dictionary a data page has as
# many. `dictionary_pagesize_limit=100_000` changes nothing.
#
# No reader takes less than a page: one that asks for ten rows at a time holds all 1,024, here twice, as they are copied out
# of the page. Written with `use_dictionary=False, write_batch_size=16`, or with `use_content_defined_chunking=True`, or in row
# groups of 100 (as datasets does), they are read in a few megabytes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "pyarrow==26.0.1"
"$folder/venv/bin/python" - <<'PYTHON'
import random

import pyarrow as pa
import pyarrow.parquet as pq

rng, size = random.Random(0), 50_000
table = pa.table({"image": [rng.randbytes(size) for _ in range(1500)]})


def look(**how):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **how)
    data, before = sink.getvalue(), pa.total_allocated_bytes()
    file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False, buffer_size=1 << 20)
    column = file.metadata.row_group(0).column(0)
    page = column.data_page_offset - column.dictionary_page_offset if column.has_dictionary_page else 0
    held = max(pa.total_allocated_bytes() - before for _ in file.iter_batches(10))
    print(f"{how}: dictionary page {page / 1e6:.1f} MB, held while ten rows are read {held / 1e6:.1f} MB")
    return page, held


usual, limited = look(), look(dictionary_pagesize_limit=100_000)
plain = look(use_dictionary=False)
small = [look(use_dictionary=False, write_batch_size=16), look(use_dictionary=False, use_content_defined_chunking=True)]
if not (min(usual[0], limited[0]) >= 1024 * size and usual[1] >= 2 * 1024 * size and plain[1] >= 1024 * size):
    raise SystemExit("changed: expected pages of 1,024 images")
if max(held for _, held in small) > 10_000_000:
    raise SystemExit("changed: expected small pages where values are looked at more often")
PYTHON
