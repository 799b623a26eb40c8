"""The file of a head that is published: looked for on this machine, or fetched once, and verified."""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from curator_dask.errors import WeightsError
from curator_dask.models.downloads import HubFile, fetch
from curator_dask.models.heads import digest_of, read_tensors
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


@dataclass(frozen=True)
class PackedHead:
    """A head that is published in an archive of which no digest is published: it is known by its tensors.

    Attributes
    ----------
    name
        Of its file, in the archive and here.
    archive
        What is fetched.
    digest
        Of its tensors: `digest_of_tensors`.
    """

    name: str
    archive: HubFile
    digest: str


NSFW = PackedHead(
    name="clip_autokeras_binary_nsfw.pth",
    archive=HubFile(
        name="clip_autokeras_binary_nsfw.zip",
        url="https://github.com/LAION-AI/CLIP-based-NSFW-Detector/files/10250461/clip_autokeras_binary_nsfw.zip",
        commit=None,
        size=None,
        digest=None,
    ),
    digest="8761ec346c198b6aa80ba0e8c3b32d9608abe9d97b019e7e31769dc9ebba0c18",
)
"""LAION's NSFW head for vectors of OpenAI's CLIP ViT-L/14. The digest is of the variables of the Keras model in LAION's
repository (commit d6bb8fe), of which the PyTorch file was made."""

_LARGEST = 64 << 20  # bytes of a head that is unpacked: LAION's has 0.9 MB


def places(name: str) -> list[Path]:
    """Where a file of a head may be: this package's folder, and that of NeMo Curator 0.9."""
    nemo = absolute(os.environ.get("NEMO_CURATOR_HOME") or "~/.nemo_curator")
    return [home() / name, nemo / name]


def find(head: HubFile | PackedHead) -> Path:
    """The file of a head on this machine; fetched into ``CURATOR_DASK_HOME`` if it is nowhere.

    Raises
    ------
    WeightsError
        It cannot be fetched, or what came is not what it should be.
    """
    target, *others = places(head.name)
    for path in (target, *others):
        if path.is_file() and _is(head, path):
            return path
    file = head.archive if isinstance(head, PackedHead) else head
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{head.name}.lock")):
            if target.is_file():  # another process was sooner, or what is there was found to be another's
                if _is(head, target):
                    return target
                # It may be what somebody has made, and what comes in its place is not here yet.
                other = target.with_name(f"{head.name}.other")
                target.replace(other)
                logger.warning("%s: is not the one that is published; it is kept as %s", target, other.name)
            logger.warning("fetching %s into %s", file.url, target.parent)
            fetch(file, target.parent, token=False)
            if isinstance(head, PackedHead):
                _unpack(head, target)
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(
            f"{head.name}: is not in {' or '.join(str(path.parent) for path in (target, *others))}, and could not be"
            f" fetched from {file.url}: {type(error).__name__}: {first_line(error)}. To work offline, fetch it on a"
            f" machine with a network and put it into {target.parent} of every node (CURATOR_DASK_HOME says where that"
            " is), or give its path as model_path"
        ) from error
    return target


def digest_of_tensors(path: str | Path) -> str:
    """SHA-256 of the tensors of a file, in hexadecimal: of their names and float32 values, sorted by name.

    Raises
    ------
    WeightsError
        The file cannot be read.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(read_tensors(path).items()):
        digest.update(name.encode() + b"\0")
        digest.update(tensor.float().contiguous().numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def _is(head: HubFile | PackedHead, path: Path) -> bool:
    """Whether a file is the head that is published."""
    try:
        return (digest_of_tensors if isinstance(head, PackedHead) else digest_of)(path) == head.digest
    except WeightsError:
        return False  # another file under this name


def _unpack(head: PackedHead, target: Path) -> None:
    """Take the head out of its archive, which goes.

    Raises
    ------
    WeightsError
        It is not the archive, or not the head.
    """
    archive = target.with_name(head.archive.name)
    part = target.with_name(f"{head.name}.part")
    again = (
        f"{head.archive.url}: %s; it was removed. Run again; if that does not help, what stands between here and there"
        " (a proxy) changes it: give the path of the head as model_path"
    )
    try:
        with zipfile.ZipFile(archive) as opened:
            # Its name alone: no path of an archive is trusted.
            found = next(
                (each for each in opened.infolist() if each.filename.rpartition("/")[2] == head.name), None
            )
            if found is None or found.file_size > _LARGEST:
                raise WeightsError(
                    again
                    % f"expected an archive with {head.name}, found {', '.join(opened.namelist()[:3]) or 'none'}"
                )
            part.write_bytes(opened.read(found))
        try:
            digest = digest_of_tensors(part)
        except WeightsError:
            digest = "none that can be read"
        if digest != head.digest:
            raise WeightsError(again % f"expected tensors with SHA-256 {head.digest}, found {digest}")
        part.replace(target)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise WeightsError(
            again % f"expected an archive, found {archive.stat().st_size} bytes of another kind"
        ) from error
    finally:
        archive.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
