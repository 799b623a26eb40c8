"""The file of a head that is published: looked for on this machine, or fetched once, and verified."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from filelock import FileLock

from curator_dask.errors import WeightsError
from curator_dask.models.downloads import HubFile, fetch
from curator_dask.models.heads import digest_of
from curator_dask.models.weights import first_line
from curator_dask.settings import absolute, home

logger = logging.getLogger("curator_dask")

_AESTHETIC_COMMIT = "6934dd81792f086e613a121dbce43082cb8be85e"

AESTHETIC = HubFile(
    name="sac+logos+ava1-l14-linearMSE.pth",
    url="https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/"
    f"{_AESTHETIC_COMMIT}/sac%2Blogos%2Bava1-l14-linearMSE.pth",
    commit=_AESTHETIC_COMMIT,
    size=3_714_759,
    digest="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
)
"""LAION's aesthetic MLP for vectors of OpenAI's CLIP ViT-L/14."""

NSFW_NAME = "clip_autokeras_binary_nsfw.pth"
NSFW_SOURCE = (
    "https://github.com/LAION-AI/CLIP-based-NSFW-Detector/files/10250461/clip_autokeras_binary_nsfw.zip"
)
"""Where LAION's NSFW head is published as a PyTorch file, in an archive."""


def places(name: str) -> list[Path]:
    """Where a file of a head may be: this package's folder, and that of NeMo Curator 0.9."""
    nemo = absolute(os.environ.get("NEMO_CURATOR_HOME") or "~/.nemo_curator")
    return [home() / name, nemo / name]


def find(file: HubFile) -> Path:
    """The file of a head on this machine; fetched into ``CURATOR_DASK_HOME`` if it is nowhere.

    Raises
    ------
    WeightsError
        It cannot be fetched, or what came is not what it should be.
    """
    target, *others = places(file.name)
    for path in (target, *others):
        if path.is_file() and digest_of(path) == file.digest:
            return path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{file.name}.lock")):
            if target.is_file():  # another process was sooner, or what is there was found to be another's
                if digest_of(target) == file.digest:
                    return target
                target.unlink()
            logger.warning("fetching %s into %s", file.url, target.parent)
            fetch(file, target.parent, token=False)
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(
            f"{file.name}: is not in {' or '.join(str(path.parent) for path in (target, *others))}, and could not be"
            f" fetched from {file.url}: {type(error).__name__}: {first_line(error)}. To work offline, fetch it on a"
            f" machine with a network and put it into {target.parent} of every node (CURATOR_DASK_HOME says where that"
            " is), or give its path as model_path"
        ) from error
    return target
