"""Virtual environments for the peers, one each, outside the repository.

    python -m benchmarks.peers.build [PEER ...]

They lie in the folder that CURATOR_DASK_PEERS names, or else in the temporary directory, and are kept: a peer is
installed again only if its requirements or the shared versions have changed. Needs uv. Every peer gets the torch,
torchvision and timm of the environment that this runs in, so that all run the same arithmetic.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PLACE_VARIABLE = "CURATOR_DASK_PEERS"
TIME_LIMIT = 1200  # seconds for an installation; torch alone is some gigabytes

SHARED = ("torch", "torchvision", "timm")
"""Packages that every peer has in the version installed here."""

REQUIREMENTS = {
    "timm-webdataset": ["webdataset>=1.0,<1.1", "pyarrow>=26,<27"],
    # Its own bounds ask for numpy 1, pandas 2, pyarrow 15 and webdataset 0.2; what it imports wants pkg_resources.
    "clip-retrieval": ["clip-retrieval>=2.45,<2.46", "setuptools>=70,<81"],
    "daft": ["daft>=0.7.26,<0.8", "pyarrow>=22,<27"],
    "ray-data": ["ray[data]>=2.58,<2.61", "webdataset>=1.0,<1.1", "pandas>=3.0,<3.2", "pyarrow>=26,<27"],
    # Its reader decodes with DALI, which its own extra brings for CUDA 12 only; it runs on a CPU too.
    "nemo-curator": ["nemo-curator[image_cpu]>=1.4,<1.5", "nvidia-dali-cuda130>=2.4,<3", "pyarrow>=26,<27"],
}
"""What each peer needs besides, bounded to the versions its script was written for."""


class BuildError(Exception):
    """A peer could not be installed; the message ends with what the installer said."""


def place() -> Path:
    """The folder of the environments."""
    given = os.environ.get(PLACE_VARIABLE)
    return Path(given) if given else Path(tempfile.gettempdir()) / "curator-dask-peers"


def requirements(peer: str) -> list[str]:
    """All that a peer's environment is made of."""
    shared = [f"{name}=={importlib.metadata.version(name)}" for name in SHARED]
    return [*REQUIREMENTS[peer], *shared]


def build(peer: str) -> Path:
    """Make a peer's environment, unless it is there.

    Parameters
    ----------
    peer
        A key of `REQUIREMENTS`.

    Returns
    -------
    pathlib.Path
        Its Python.

    Raises
    ------
    BuildError
        uv is missing, or the installation failed or took too long.
    """
    folder = place() / peer
    python, finished = folder / "bin" / "python", folder / "finished.json"
    wanted = {"python": ".".join(map(str, sys.version_info[:2])), "requirements": requirements(peer)}
    if finished.exists() and json.loads(finished.read_text()) == wanted:
        return python
    uv = shutil.which("uv")
    if uv is None:
        raise BuildError("uv is not on the PATH: install it (pip install uv)")
    print(f"{peer}: installing into {folder}", flush=True)
    _call(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
    _call(uv, "pip", "install", "--quiet", "--python", str(python), *wanted["requirements"])
    finished.write_text(json.dumps(wanted))
    return python


def _call(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{' '.join(command[1:3])} took more than {TIME_LIMIT} s") from None
    if done.returncode:
        raise BuildError(f"{' '.join(command[1:3])} failed: {done.stderr.strip()[-2000:]}")


def main(given: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", metavar="PEER", nargs="*", help=f"of {', '.join(REQUIREMENTS)}; default all")
    peers = parser.parse_args(given).peers or list(REQUIREMENTS)
    if unknown := set(peers) - set(REQUIREMENTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected some of {', '.join(REQUIREMENTS)}")
    failed = 0
    for peer in peers:
        try:
            print(f"{peer}: {build(peer)}")
        except BuildError as error:
            print(f"{peer}: {error}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
