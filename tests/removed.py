"""Removals that are killed, in processes of their own."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import dask

#: Files that come to be there at least, in a removal that is killed before each.
EACH_RENAME = 35


#: What is copied.
FOLDERS = ("out", "new", "new.export", "fetched", "fetched.fetch")


def kill_at_each_rename(made: Path, target: Path, table: Path, step: int) -> None:
    """Do it to a copy after the other: killed before a file is renamed, before one `step` further, ..., and never.

    This process does nothing but fork, so that its children have no thread's locks.
    """
    from curator_dask.removing import remove_samples

    number = 0
    while True:
        copy = target / f"{number:03d}"
        for name in FOLDERS:
            shutil.copytree(made / name, copy / name)
        child = os.fork()
        if not child:
            _count_down(number)
            with dask.config.set(scheduler="sync"):
                remove_samples([copy / name for name in FOLDERS if "." not in name], table, "url")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        (copy / "exit").write_text(str(code))
        if code == 0:
            return
        assert code == -signal.SIGKILL, code
        number += step


def _count_down(number: int) -> None:
    left = [number]
    rename = Path.replace

    def replace(self, target):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return rename(self, target)

    Path.replace = replace
