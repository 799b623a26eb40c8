"""The peers of curator_dask, and a peer at work in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from curator_dask.cluster.local import MALLOC

OURS = "curator-dask"
COMPILED = "curator-dask, compile=True"
FLOAT32 = "curator-dask, autocast=False"
VARIANTS = (OURS, COMPILED, FLOAT32)
BY_HAND_COMPILED = "timm-webdataset, by hand, compiled"
SCRIPTS = Path(__file__).parent / "scripts"
JOB_LIMIT = 1800  # seconds after which a job counts as hung

_ROOT = Path(__file__).parents[2]
_LOOK_EVERY = 0.5  # seconds between two looks at a peer's processes, which take 4 ms of a core
_SLOW_LOOK_EVERY = 1.0  # where proportional memory is read, which takes some 10 ms a process


class PeerError(Exception):
    """A peer failed; the message ends with what it said last."""


@dataclass(frozen=True)
class Peer:
    """Something to compare.

    Attributes
    ----------
    script
        In `benchmarks/peers/scripts`, without ``.py``.
    environment
        Name of its virtual environment; None is the one this runs in.
    stays
        Its workers live on from job to job.
    settings
        For a number of cores, those worth trying, the best known first. ``--tune`` tries them all.
    note
        What a reader of its figures has to know.
    loads
        Names of the loads that it is of use for; empty: all.
    native_bf16
        It is of use only where bf16 is fast.
    """

    script: str
    environment: str | None
    stays: bool
    settings: Callable[[int], list[dict[str, Any]]]
    note: str = ""
    loads: tuple[str, ...] = ()
    native_bf16: bool = False


def _layouts(*layouts: tuple[int, int, int], **more: Any) -> Callable[[int], list[dict[str, Any]]]:
    """Settings of workers, threads of each (0 stands for the number of cores) and the batch size."""

    def settings(count: int) -> list[dict[str, Any]]:
        return [
            {"workers": workers or count, "threads": threads or count, "batch_size": batch, **more}
            for workers, threads, batch in layouts
        ]

    return settings


def _all(*several: Callable[[int], list[dict[str, Any]]]) -> Callable[[int], list[dict[str, Any]]]:
    return lambda count: [each for settings in several for each in settings(count)]


# Small batches are faster for most on a CPU: what is freed after a larger one goes back to the system each time.
_LOOP = _layouts((0, 0, 16), (0, 0, 64), (1, 0, 16), (1, 1, 16), (0, 1, 16))
# Workers with a model each, that decode too: nothing goes from process to process.
_APART = _layouts((0, 1, 16), apart=True)
_OURS = ((0, 1, 16), (1, 0, 64), (0, 1, 64))


def _by_hand(**more: Any) -> Callable[[int], list[dict[str, Any]]]:
    """The plain loop with all that is known here to help it, in the layouts that are best for a CNN or a ViT."""
    more = {"channels_last": True, "allocator": True, **more}
    return _all(
        _layouts((0, 1, 16), (0, 1, 64), apart=True, **more),
        _layouts((0, 0, 16), (1, 0, 16), **more),
    )


PEERS = {
    OURS: Peer("with_curator_dask", None, True, _layouts(*_OURS)),
    COMPILED: Peer(
        "with_curator_dask",
        None,
        True,
        _layouts((0, 1, 64), (1, 0, 64), compile=True),
        'its cold start has the compilation in it; `compile="auto"` compiles after five minutes of work only',
        loads=("efficientnet-lite0",),
    ),
    FLOAT32: Peer(
        "with_curator_dask",
        None,
        True,
        _layouts(*_OURS[::2], autocast=False),
        "in float32 as the peers are; by itself it takes bf16 for a ViT where a CPU has it",
        loads=("vit-b-32",),  # CNNs are in float32 anyway
        native_bf16=True,
    ),
    "timm-webdataset": Peer("plain_loop", "timm-webdataset", True, _LOOP, "the loop that users write"),
    "timm-webdataset, by hand": Peer(
        "plain_loop",
        "timm-webdataset",
        True,
        _by_hand(),
        "the same loop with all that curator_dask does for it: channels_last, its allocator settings, and a process"
        " with one thread for each core that decodes and embeds a share of the shards, where that is faster",
    ),
    BY_HAND_COMPILED: Peer(
        "plain_loop",
        "timm-webdataset",
        True,
        _by_hand(compiled=True),
        "the same under torch.compile with frozen weights; the compilation is in its cold start",
        loads=("efficientnet-lite0",),
    ),
    "timm-webdataset, by hand, bf16": Peer(
        "plain_loop",
        "timm-webdataset",
        True,
        _by_hand(bf16=True),
        "the same under torch.autocast",
        loads=("vit-b-32",),
        native_bf16=True,
    ),
    "clip-retrieval": Peer(
        "clip_retrieval_runner",
        "clip-retrieval",
        True,
        _all(_APART, _LOOP),
        "its reader, runner and writer (float16), without its logger; a timm model in place of its CLIP",
    ),
    "daft": Peer(
        "daft_frame",
        "daft",
        False,
        _layouts((0, 1, 16), (0, 1, 64), (1, 0, 16)),
        "decoding with Pillow in the model's UDF",
    ),
    "ray-data": Peer(
        "ray_dataset",
        "ray-data",
        False,
        _layouts((0, 1, 16), (0, 1, 64), (1, 0, 16)),
        "actors that decode with Pillow and embed",
    ),
    "nemo-curator": Peer(
        "nemo_stages",
        "nemo-curator",
        False,
        _all(
            _layouts((0, 1, 16), (0, 1, 64), (1, 0, 64), executor="xenna"),
            _layouts((1, 0, 16), executor="ray_data"),
        ),
        "without a GPU its reader as released fails (it asks DALI for device 0); run with device_id=None; a timm"
        " stage in place of its CLIP; its ids are positions in a shard",
    ),
}
"""What is compared, by name; curator_dask first."""


class Tree:
    """CPU time and memory of a process and all that ever descended from it.

    Parameters
    ----------
    pid
        The first process.
    every
        Seconds between two looks. What a process does after the last look at it is lost.
    proportional
        Read the proportional set size, not the resident one; slow.

    Attributes
    ----------
    peak_mib
        Largest sum of memory seen.
    """

    def __init__(self, pid: int, every: float = _LOOK_EVERY, proportional: bool = False) -> None:
        self._every, self._proportional = every, proportional
        self._cpu: dict[psutil.Process, float] = {}
        self._known = {psutil.Process(pid)}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.peak_mib = 0.0
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def look(self) -> float:
        """CPU seconds so far, user and system, of all the processes."""
        with self._lock:
            children: dict[int, list[psutil.Process]] = {}
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    children.setdefault(process.ppid(), []).append(process)
            # Known ones are asked for their children even if they have another parent by now.
            open_ends = [process for process in self._known if process.is_running()]
            alive = set(open_ends)
            while open_ends:
                new = [child for child in children.get(open_ends.pop().pid, ()) if child not in alive]
                alive.update(new)
                open_ends += new
            self._known = alive
            memory = 0
            for process in alive:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    self._cpu[process] = times.user + times.system
                    memory += (
                        process.memory_full_info().pss if self._proportional else process.memory_info().rss
                    )
            self.peak_mib = max(self.peak_mib, round(memory / 2**20, 1))
            return sum(self._cpu.values())

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self.look()

    def close(self) -> None:
        """Stop looking, and end what is left of the processes."""
        self._stop.set()
        self._watcher.join()
        self.look()
        for process in self._known:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, stubborn = psutil.wait_procs(self._known, timeout=10)
        for process in stubborn:
            with contextlib.suppress(psutil.Error):
                process.kill()


@dataclass
class Run:
    """A peer at work, in a process of its own: a context manager.

    Parameters
    ----------
    peer, python, load, settings
        What to run, with which interpreter, on what.
    place
        Folder for outputs and the log; the caller removes it.
    proportional
        See `Tree`.
    """

    peer: Peer
    python: Path
    load: Mapping[str, Any]
    settings: Mapping[str, Any]
    place: Path
    proportional: bool = False
    versions: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Run:
        self.started = time.perf_counter()
        paths = [str(SCRIPTS)] + ([str(_ROOT)] if self.peer.environment is None else [])
        environment = {
            **os.environ,
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",  # NeMo Curator starts "ray"
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": str(self.settings["threads"]),
            **(MALLOC if self.settings.get("allocator") else {}),
            # Ray's head asks for a token, which its own command line does not find unless it is given one.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        self.place.mkdir(parents=True)
        self._log = (self.place / "log").open("w+")
        self._process = subprocess.Popen(
            [str(self.python), str(SCRIPTS / f"{self.peer.script}.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=self.place,
            env=environment,
        )
        every = _SLOW_LOOK_EVERY if self.proportional else _LOOK_EVERY
        self.tree = Tree(self._process.pid, every, self.proportional)
        try:
            self.versions = self._ask({"load": self.load, "settings": self.settings})["versions"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def job(self, shards: list[str], name: str) -> tuple[float, float]:
        """Embed the shards into the folder `name` of `place`; seconds and CPU seconds."""
        cpu, begun = self.tree.look(), time.perf_counter()
        self._ask({"shards": shards, "out": str(self.place / name)})
        seconds = time.perf_counter() - begun
        return seconds, self.tree.look() - cpu

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        begun = time.perf_counter()
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(message), file=self._process.stdin, flush=True)
        answer = ""
        while not answer:
            # What the peer has started may hold the pipe open after its end, so reading alone could wait for ever.
            ended = self._process.poll() is not None
            if select.select([self._process.stdout], [], [], 0 if ended else _LOOK_EVERY)[0]:
                answer = self._process.stdout.readline()
            waited = time.perf_counter() - begun
            if not answer and (ended or waited > JOB_LIMIT):
                how = f"ended after {waited:.0f} s" if ended else f"no answer in {JOB_LIMIT} s"
                self._process.kill()
                raise PeerError(f"{how}: {self._last_words()}")
        return json.loads(answer)

    def _last_words(self) -> str:
        """The last error in the log, or its last line: libraries go on talking after they have failed."""
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Timeout)\b", line)]
        return (errors or lines or ["no word"])[-1][:500]

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(60)
        self.tree.close()
        self._log.close()
