#!/usr/bin/env bash
# transformers 5.24.0 (torch 2.11.0): a folder that CLIPModel has written, whose projection is not 512 wide, is read by CLIPModel
# alone. CLIPVisionModelWithProjection and CLIPTextModelWithProjection, of the same checkpoint format, raise a size
# mismatch: they take the width from their own tower's configuration, whose default is 512, while CLIPConfig(
# projection_dim=...) keeps it at the top. OpenAI's own folders have it in all three places, so it does not show there.
#
# So who wants one tower of a CLIP of their own loads both, or copies projection_dim into vision_config and text_config.
# Seen: projection_dim=48; "Reinit due to size mismatch - ckpt: torch.Size([48, 32]) vs model:torch.Size([512, 32])".
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "transformers==5.24.0" "torch==2.11.0"
cat >"$folder/towers.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import transformers
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

transformers.logging.set_verbosity_error()
folder = Path(sys.argv[1]) / "clip"
small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
config = CLIPConfig(
    text_config={**small, "vocab_size": 99},
    vision_config={**small, "image_size": 32, "patch_size": 16},
    projection_dim=48,
)
CLIPModel(config).save_pretrained(folder)
assert CLIPModel.from_pretrained(folder).visual_projection.out_features == 48
written = json.loads((folder / "config.json").read_text())
assert written["projection_dim"] == 48, written
for tower, part in ((CLIPVisionModelWithProjection, "vision_config"), (CLIPTextModelWithProjection, "text_config")):
    try:
        tower.from_pretrained(folder)
    except RuntimeError as error:
        print(f"{tower.__name__}: {type(error).__name__}: {str(error).splitlines()[0]}")
    else:
        sys.exit(f"changed: {tower.__name__} is read")
    written[part]["projection_dim"] = 48
(folder / "config.json").write_text(json.dumps(written))
for tower in (CLIPVisionModelWithProjection, CLIPTextModelWithProjection):
    tower.from_pretrained(folder)
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/towers.py" "$folder" 2>/dev/null
