"""Compiled models kept on this machine: what one run has compiled, the workers of later ones load in under a second.

torch's own caches keep the kernels of a model whose weights are frozen, but not how they follow each other: traced and
fused again, EfficientNet-Lite0 takes 6 s of a core in place of 24. AOTInductor makes a library of the whole, weights
and all, which gives the same vectors to the bit and is loaded in 0.4 s. It is native code, so only files of the user's
own are loaded; and it is made for one CPU and for inputs of one shape, of which neither is checked by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from curator_dask import __version__, backend, settings

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("curator_dask")

_PACKAGES = ("torch", "timm", "transformers")
"""Whose versions decide what a model of a name computes, and how."""

_MOST_BYTES = 4 << 30
"""Of all files together; those go that were not used for longest."""

_UNFINISHED = ".unfinished-"

_ABANDONED = 86400.0
"""Seconds after which an unfinished file is one that a killed worker has left."""

Compiled = Callable[["torch.Tensor"], "torch.Tensor"]


def load(identity: str, inputs: torch.Tensor) -> Compiled | None:
    """The compiled model for inputs of this shape, if one is kept.

    Parameters
    ----------
    identity
        What the model is: its architecture and its weights.
    inputs
        What it will be called with, in the precision of the `torch.autocast` around this call.
    """
    import torch

    folder = _folder(make=False)
    kept = None if folder is None else folder / _name(identity, inputs)
    if kept is None or not kept.is_dir():
        return None
    try:
        library = torch._inductor.aoti_load_package(str(kept))
        os.utime(kept)
    except (
        Exception
    ) as error:  # of a version that loads no folders, or a file that was cut off: errors of many types
        logger.debug("%s: not loaded: %s: %s", kept, type(error).__name__, error)
        return None
    return _for_strides_of(inputs, library)


def make(model: Compiled, identity: str, inputs: torch.Tensor, threads: int) -> Compiled | None:
    """Compile a model for inputs of this shape, and keep it; None where no file can be kept.

    Parameters
    ----------
    model
        A module.
    identity, inputs
        See `load`.
    threads
        Compilers at a time.

    Raises
    ------
    Exception
        The model cannot be exported, or there is no compiler: of many types.
    """
    import torch

    folder = _folder(make=True)
    if folder is None or not isinstance(model, torch.nn.Module):
        return None
    exported = torch.export.export(model, (inputs,))
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as name:
        package, made = Path(name, "model.pt2"), Path(name, "model")
        torch._inductor.aoti_compile_and_package(
            exported,
            package_path=str(package),
            inductor_configs={"freezing": True, "compile_threads": threads},
        )
        # As a folder it is loaded where it lies, and its pages are shared; a file is unpacked into /tmp each time.
        with zipfile.ZipFile(package) as archive:
            archive.extractall(made)
        (content,) = made.iterdir()
        with contextlib.suppress(OSError):  # another worker was first
            content.rename(folder / _name(identity, inputs))
    _tidy(folder)
    return load(identity, inputs)


def drop(identity: str, inputs: torch.Tensor) -> None:
    """Remove the file of a model, if there is one."""
    if folder := _folder(make=False):
        shutil.rmtree(folder / _name(identity, inputs), ignore_errors=True)


def _for_strides_of(inputs: torch.Tensor, library: Compiled) -> Compiled:
    """The library, called with inputs of the very shape and strides that it reads without a look at them."""
    import torch

    shape, strides = inputs.shape, inputs.stride()

    def call(given: torch.Tensor) -> torch.Tensor:
        if given.shape != shape:
            raise ValueError(f"compiled for inputs of shape {tuple(shape)}, got {tuple(given.shape)}")
        if given.stride() != strides:
            given = torch.empty_strided(shape, strides, dtype=given.dtype).copy_(given)
        return library(given)

    return call


def _name(identity: str, inputs: torch.Tensor) -> str:
    """Of the file of a model, for inputs of this shape, on this machine, with these packages."""
    import torch

    on = {
        "model": identity,
        "curator_dask": __version__,
        **{name: _version(name) for name in _PACKAGES},
        "machine": backend.hardware("cpu"),
        "threads": torch.get_num_threads(),  # which the kernels have in them
        "shape": list(inputs.shape),
        "strides": list(inputs.stride()),
        "dtype": str(inputs.dtype),
        "autocast": str(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else None,
    }
    return hashlib.sha256(json.dumps(on, sort_keys=True).encode()).hexdigest()[:32]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _folder(make: bool) -> Path | None:
    """Where the files are; None where others could put theirs, nothing can be written, or the CPU is not known."""
    folder = settings.home() / "compiled"
    if backend.hardware("cpu") is None:
        return None
    try:
        if make:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not folder.is_dir():
            return None
        found = folder.lstat()
        others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or others_write:
            logger.debug("%s: compiled models are not kept, it is not a folder of this user's alone", folder)
            return None
    except OSError as error:
        logger.debug("%s: compiled models are not kept: %s", folder, error)
        return None
    return folder


def _tidy(folder: Path) -> None:
    """Remove what was not used for longest, until the rest is not too much, and what killed workers have left."""
    with contextlib.suppress(OSError):  # another worker does the same
        room = _MOST_BYTES
        for entry in sorted(folder.iterdir(), key=lambda each: each.stat().st_mtime, reverse=True):
            if entry.name.startswith(_UNFINISHED):
                gone = time.time() - entry.stat().st_mtime > _ABANDONED
            else:
                room -= sum(each.stat().st_size for each in entry.rglob("*"))
                gone = room < 0
            if gone:
                shutil.rmtree(entry, ignore_errors=True)
