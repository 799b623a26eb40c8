#!/usr/bin/env bash
# DuckDB 2.0.1: whether a NaN passes `score > 0.5` depends on how the Parquet file was cut into row groups.
# In DuckDB NaN is larger than every number, so it passes, as it does in a table in memory. But the statistics that
# pyarrow writes leave NaN out, and a row group whose largest number is below 0.5 is skipped with its NaN. The same four
# rows give 1 row from row groups of one row, from a file without statistics, and from memory, but 0 from row groups of
# two or four. A lower bound of 0.25, which some number passes, gives the NaN back.
#
# So a filter on a score that may be NaN keeps other rows after the file is written again. pyarrow 26.0.1 itself never
# lets NaN pass. Scores are better null than NaN.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "duckdb==2.0.1" "pyarrow==26.0.1" "numpy==2.4.6"
cat >"$folder/nan.py" <<'PYTHON'
import sys

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

rows = pa.table({"score": np.array([0.1, 0.2, np.nan, 0.3])})
path = f"{sys.argv[1]}/scores.parquet"
count = "SELECT count(*) FROM {} WHERE score > {}"
found = {"memory": duckdb.sql(count.format("rows", 0.5)).fetchall()[0][0]}
for size in (1, 2, 4):
    for statistics in (True, False):
        pq.write_table(rows, path, row_group_size=size, write_statistics=statistics)
        found[size, statistics] = duckdb.sql(count.format(f"'{path}'", 0.5)).fetchall()[0][0]
        lower = duckdb.sql(count.format(f"'{path}'", 0.25)).fetchall()[0][0]
        print(f"{size} rows a group, statistics {statistics}: {found[size, statistics]}; above 0.25: {lower}")
        if lower != 2 or pq.read_table(path, filters=[("score", ">", 0.5)]).num_rows != 0:
            raise SystemExit("changed: expected 2 rows above 0.25, and none by pyarrow above 0.5")
print(found)
expected = {"memory": 1, (1, True): 1, (1, False): 1, (2, True): 0, (2, False): 1, (4, True): 0, (4, False): 1}
if found != expected:
    raise SystemExit(f"changed: expected {expected}")
PYTHON
"$folder/venv/bin/python" "$folder/nan.py" "$folder"
