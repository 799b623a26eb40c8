#!/usr/bin/env bash
# pyarrow 26.0.1: casting a column of list views to lists gives an array that is not valid, without an error.
# A list needs one offset more than it has rows; the cast takes the view's, of which there is one a row. So
# `validate` says that the buffer of offsets is too small, and the last row comes out empty: [[1, 2], [3], [4, 5, 6]]
# becomes [[1, 2], [3], []]. From or to large lists it is the same, told by `validate` as offsets that fall where the widths
# of offsets differ. `take` of such a column is right, and so are lists made anew of what `to_pylist` gives.
#
# So columns of list views, which Arrow's IPC files may hold, lose values where a program casts them to the lists that
# most readers expect. `validate(full=True)` after the cast tells it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "pyarrow==26.0.1"
"$folder/venv/bin/python" - <<'PYTHON'
import pyarrow as pa

rows = [[1, 2], [3], [4, 5, 6]]
said = {}
for view in (pa.list_view(pa.int64()), pa.large_list_view(pa.int64())):
    for kind in (pa.list_(pa.int64()), pa.large_list(pa.int64())):
        made = pa.array(rows, view).cast(kind)
        try:
            made.validate(full=True)
            said[str(view), str(kind)] = "valid"
        except pa.ArrowInvalid as error:
            said[str(view), str(kind)] = str(error).split(":")[0].split(" (")[0]
        print(f"{view} to {kind}: {said[str(view), str(kind)]}")
    if pa.array(rows, view).take(pa.array([2, 0])).to_pylist() != [rows[2], rows[0]]:
        raise SystemExit("changed: expected rows that are taken to be right")
last = pa.array(rows, pa.list_view(pa.int64())).cast(pa.list_(pa.int64()))
print(last.to_pylist())
if "valid" in said.values() or last.to_pylist() != [[1, 2], [3], []]:
    raise SystemExit("changed: expected no valid array, and the last list empty")
PYTHON
