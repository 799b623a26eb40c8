#!/usr/bin/env bash
# transformers 5.24.0 (torch 2.11.0, opencv-python-headless 5.0.0.93): what is found by its detectors of text (PP-OCRv5,
# PP-OCRv6) are four corners in int16, where the docstring of post_process_object_detection says boxes (n, 4). So its own
# pipeline, which takes a box for four numbers, gives pairs under other names, and in an image that is longer than 32,767
# pixels corners are negative. The pipeline's threshold is that of the map here, and not of scores, which are 0.6 or more whatever it is.
#
# So who uses them takes the post-processing itself, makes hulls of the corners, and of long images gives other sizes.
# Seen: {'xmin': [0, 0], 'ymin': [200, 0], 'xmax': [200, 100], 'ymax': [0, 100]} of an image of 200 by 100 pixels, and
# -25536 for a right edge at 40,000.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "transformers==5.24.0" "torch==2.11.0" "torchvision==0.26.0" "opencv-python-headless==5.0.0.93"
cat >"$folder/text.py" <<'PYTHON'
import sys

import torch
import transformers
from PIL import Image

transformers.logging.set_verbosity_error()
model = transformers.PPOCRV5MobileDetForObjectDetection(transformers.PPOCRV5MobileDetConfig()).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.zero_()
    model.head.conv_final.bias.fill_(5)  # all of every image is text
processor = transformers.PPOCRV5ServerDetImageProcessor()


def corners(size):
    inputs = processor(images=Image.new("RGB", size), return_tensors="pt")
    with torch.inference_mode():
        outputs = model(pixel_values=inputs["pixel_values"])
    found = processor.post_process_object_detection(outputs, target_sizes=inputs["target_sizes"])
    return found[0]["boxes"]


short, long = corners((200, 100)), corners((40000, 64))
print(tuple(short.shape), short.dtype, short.tolist(), long.tolist())
if tuple(short.shape) != (1, 4, 2) or short.dtype != torch.int16:
    sys.exit("changed: other boxes")
if long.min() != 40000 - 2**16:
    sys.exit("changed: corners of long images")
pipeline = transformers.pipeline("object-detection", model=model, image_processor=processor)
(found,) = pipeline(Image.new("RGB", (200, 100)), threshold=0.9)
print(found)
if found["box"]["xmin"] != [0, 0] or found["box"]["ymin"] != [200, 0]:
    sys.exit("changed: boxes of the pipeline")
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/text.py" 2>/dev/null
