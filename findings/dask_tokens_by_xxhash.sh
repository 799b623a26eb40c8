#!/usr/bin/env bash
# Dask 2026.7.1: `tokenize` gives other tokens for the same arrays, frames, functions and classes once `xxhash` is
# installed, which Hugging Face's `datasets` brings. `dask.hashing` takes the fastest of cityhash, xxhash and mmh3 that it
# finds, and SHA-1 else. Tokens of numbers and text stay.
#
# Seen: with xxhash 4.1.0 other tokens of an array, a frame, a function of a module and a class, and another name of the
# same `from_pandas(...).map_partitions(...)`; the same token of a tuple of numbers and text. Who keeps results by Dask's
# tokens or names, over days or over two environments, does all of it again when another package comes in.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "dask[dataframe]==2026.7.1" "pandas==3.0.6" "numpy==2.4.6"
cat >"$folder/tokens.py" <<'PYTHON'
import json
import textwrap

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.base import tokenize

dask.config.set({"dataframe.convert-string": False})
frame = pd.DataFrame({"a": [1, 2, 3]})
made = {
    "array": tokenize(np.arange(10)),
    "frame": tokenize(frame),
    "function": tokenize(textwrap.dedent),
    "class": tokenize(textwrap.TextWrapper),
    "name": dd.from_pandas(frame, npartitions=1).map_partitions(len, meta=("n", "int64"))._name,
    "plain": tokenize((1, 2.5, "text", ("a", None))),
}
print(json.dumps(made))
PYTHON
before=$("$folder/venv/bin/python" "$folder/tokens.py")
again=$("$folder/venv/bin/python" "$folder/tokens.py")
"$folder/venv/bin/pip" install -q "xxhash==4.1.0"
after=$("$folder/venv/bin/python" "$folder/tokens.py")
"$folder/venv/bin/python" - "$before" "$again" "$after" <<'PYTHON'
import json
import sys

before, again, after = map(json.loads, sys.argv[1:])
assert before == again, "tokens differ from run to run"
changed = sorted(name for name in before if before[name] != after[name])
print("changed by xxhash:", changed)
assert changed == ["array", "class", "frame", "function", "name"], changed
PYTHON
