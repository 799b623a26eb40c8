"""Programs beside the tests, forked as the tests' workers are: started, each would import for seconds.

What is to be seen of a user's own script, from its first import to its last message, is run as one all the same.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pkgutil
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import dask
import psutil


def start(
    target: Callable[..., Any], *args: Any, log: Path, env: Mapping[str, str] | None = None
) -> multiprocessing.Process:
    """Call a function of a module in a process and session of its own; what it prints goes into a file."""
    started = multiprocessing.get_context("forkserver").Process(
        target=_run, args=(target, args, str(log), dict(env or {}))
    )
    started.start()
    return started


def _run(target: Callable[..., Any], args: tuple[Any, ...], log: str, env: dict[str, str]) -> None:
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    os.environ.update(env)
    # Its own workers come from the same process as it does; Python would start another for them.
    forkserver._forkserver.ensure_running = lambda: None
    # A worker has the variables of the process that it is forked from, and those that it is told.
    environment = {f"distributed.nanny.environ.{name}": value for name, value in env.items()}
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver", **environment}):
        target(*args)


def import_all(package: str) -> None:
    """Import every module of a package."""
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(found.name)


def processes() -> set[psutil.Process]:
    """All that these tests have started and that lives: programs, their workers, those of clusters."""
    return {*psutil.Process().children(recursive=True)}
