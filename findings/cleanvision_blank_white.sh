#!/usr/bin/env bash
# CleanVision 0.3.7: a blank white picture is not blurry. Its blurriness is the deviation of what Pillow's FIND_EDGES
# gives, and that filter leaves the outermost pixels as they were: a ring of white around black.
#
# So a missing-image placeholder that is white gets 75.6, as sharp as a photograph (scikit-image's astronaut: 80.9), and
# one that is black gets 0. A threshold on this score keeps the one and drops the other.
# Seen with Pillow 13.0, 40 x 40 pixels.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "cleanvision==0.3.7"
"$folder/venv/bin/python" - <<'PYTHON'
from cleanvision.issue_managers.image_property import BlurrinessProperty
from PIL import Image

found = {
    colour: round(float(BlurrinessProperty().calculate(Image.new("RGB", (40, 40), colour))["blurriness"]), 1)
    for colour in ("white", "grey", "black")
}
print(found)
if not (found["white"] == 75.6 and found["black"] == 0):
    raise SystemExit("changed: expected 75.6 for white and 0 for black")
PYTHON
