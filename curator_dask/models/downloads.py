"""One file of the hub: fetched into a folder, from where an earlier try ended, and verified."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from curator_dask.errors import WeightsError
from curator_dask.models.weights import first_line, is_of_the_network

logger = logging.getLogger("curator_dask")

TRIES = 4
"""Connections, without a byte between them, after which a download is given up for this run."""

PAUSE = 1.0
"""Seconds before the second try; they double with each further one."""


@dataclass(frozen=True)
class HubFile:
    """A file of the hub.

    Attributes
    ----------
    name
        In its repository.
    url
        Where it is fetched from.
    commit
        Of the repository; None where the hub does not say.
    size
        Bytes; None where the hub does not say.
    digest
        SHA-256 in hexadecimal; None where the hub does not say.
    """

    name: str
    url: str
    commit: str | None
    size: int | None
    digest: str | None


def fetch(file: HubFile, folder: Path, *, token: bool | None = None) -> None:
    """Bring a file into a folder, under its name once it is verified; goes on where an earlier try ended.

    Parameters
    ----------
    file, folder
        What, and where to.
    token
        False: the user's token for the hub is not sent, as the file is elsewhere.

    Raises
    ------
    WeightsError
        What came is not what it should be.
    Exception
        The hub's or the network's own, once `TRIES` connections have brought nothing.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    # Not hf_hub_download: since version 2 it throws away what it has when it gives up.
    part = folder / f"{file.name}.part"
    # Compressed, an offset into what was received would not be one into what is sent.
    headers = {**build_hf_headers(token=token), "Accept-Encoding": "identity"}
    failures = 0
    while not (folder / file.name).is_file():
        before = part.stat().st_size if part.exists() else 0
        if before and (file.size is None or before > file.size):
            part.unlink()
            before = 0
        try:
            with part.open("ab") as out:
                http_get(
                    file.url,
                    out,
                    resume_size=before,
                    headers=headers,
                    expected_size=file.size,
                    displayed_filename=file.name,
                )
        except Exception as error:
            failures = 1 if part.stat().st_size > before else failures + 1
            if not _may_pass(error) or failures >= TRIES:
                raise
            logger.warning("%s: %s; going on at byte %d", file.url, first_line(error), part.stat().st_size)
            time.sleep(PAUSE * 2 ** (failures - 1))
        else:
            verify(file, part)
            part.replace(folder / file.name)


def _may_pass(error: Exception) -> bool:
    """Whether another try may bring what this one did not."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status >= 500 or status in (408, 429)
    # huggingface_hub's word for less than was announced is an OSError without a number.
    return is_of_the_network(error) or (isinstance(error, OSError) and error.errno is None)


def verify(file: HubFile, path: Path) -> None:
    """Compare what came with what should have; it is removed if it differs.

    Raises
    ------
    WeightsError
        It differs.
    """
    if file.digest is None:
        return
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found == file.digest:
        return
    size = path.stat().st_size
    path.resolve().unlink()
    path.unlink(missing_ok=True)  # huggingface_hub's cache links to its file
    raise WeightsError(
        f"{file.url}: expected a file with SHA-256 {file.digest}, found {found} ({size} bytes); it was removed. Run"
        " again; if that does not help, what stands between here and the hub (a proxy, a mirror in HF_ENDPOINT)"
        " changes it"
    )
