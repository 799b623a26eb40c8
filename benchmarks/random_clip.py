"""CLIP's vision towers with random weights, for benchmarks that must do without a network."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from curator_dask import backend

BASE, LARGE = "clip-vit-base-patch32", "clip-vit-large-patch14"
TINY = "clip-tiny"
CLIPS: dict[str, dict[str, Any]] = {
    # Sizes as in the config.json of OpenAI's models of these names; the last is only to see that this works.
    BASE: {"patch_size": 32, "projection_dim": 512},
    LARGE: {
        "patch_size": 14,
        "projection_dim": 768,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    TINY: {
        "patch_size": 32,
        "projection_dim": 48,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}
"""What differs from the defaults of transformers' ``CLIPVisionConfig``."""

_SPREAD = 3
"""Factor on random weights. With transformers' own spread all photographs get nearly the same vector (cosines of 0.96
to 0.998), with 6 rounding to bf16 begins to show."""


def clip_folder(name: str) -> Path:
    """A folder with a CLIP's vision tower of random weights, in the temporary directory; made if it is not there."""
    import transformers

    folder = Path(tempfile.gettempdir()) / f"curator-dask-{name}-random-{_SPREAD}"
    if folder.exists():
        return folder
    torch.manual_seed(0)
    tower = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**CLIPS[name]))
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.ndim > 1:
                parameter.mul_(_SPREAD)
    partial_folder = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    transformers.logging.disable_progress_bar()
    tower.save_pretrained(partial_folder)
    transformers.CLIPImageProcessor().save_pretrained(partial_folder)
    partial_folder.rename(folder)
    return folder


def forward(folder: str, batch_size: int, images: int, part: int, parts: int) -> int:
    """A bare CLIP on one batch of noise that stays on the device, `images` of it in all processes."""
    here = backend.current()
    tower, pixels = _tower(folder, batch_size)
    dtype = here.autocast_dtype()
    batches = max(1, images // parts // batch_size)
    with torch.inference_mode(), torch.autocast(here.torch_device.type, dtype, enabled=dtype is not None):
        for _ in range(batches):
            vectors = tower(pixel_values=pixels).image_embeds
        vectors.float().cpu()  # waits for the device
    return batches * batch_size


@functools.cache
def _tower(folder: str, batch_size: int) -> tuple[Any, torch.Tensor]:
    import transformers

    transformers.logging.disable_progress_bar()
    device = backend.current().torch_device
    tower: Any = transformers.CLIPVisionModelWithProjection.from_pretrained(folder).eval().to(device)
    size = tower.config.image_size
    pixels = torch.randn((batch_size, 3, size, size), generator=torch.Generator().manual_seed(0))
    return tower, pixels.to(device)
