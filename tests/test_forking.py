"""Workers that are forked from a process that has loaded everything: only where they have the environment they want."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import gc, json, os, signal, sys, time
import dask
from curator_dask import get_client
from curator_dask.cluster import forking
from curator_dask.cluster.client import load_ahead
from curator_dask.cluster.local import THREAD_VARIABLES, spawn_environment

METHOD = "distributed.worker.multiprocessing-method"
NAMES = ("PYTHONSAFEPATH", "OMP_NUM_THREADS", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "CURATOR_DASK_DEVICE")


def about():
    # What the process began with, too: that is what malloc and OpenMP have read.
    with open("/proc/self/environ", "rb") as file:
        began = dict(line.split(b"=", 1) for line in file.read().split(b"\\0") if line)
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    said = {name: os.environ.get(name) for name in NAMES}
    return {
        "timm": "timm" in sys.modules, "env": said, "blocked": blocked, "pid": os.getpid(),
        "collects": gc.isenabled() and gc.get_threshold(),
        "began": {name: began.get(name.encode(), b"").decode() for name in NAMES},
    }


if __name__ == "__main__":
    load_ahead("cpu", 2)
    said = {"collects": gc.get_threshold()}
    with get_client("cpu", n_workers=2, verbose=False) as client:
        said["forked"] = [*client.run(about).values()]
        said["method"] = dask.config.get(METHOD)
        victim = said["forked"][0]["pid"]
        os.kill(victim, signal.SIGKILL)
        end = time.monotonic() + 60
        while len(pids := [one["pid"] for one in client.run(about, on_error="ignore").values()]) < 2 or victim in pids:
            assert time.monotonic() < end, pids
            time.sleep(0.1)
        said["again"] = [*client.run(about).values()]
    said["method after"] = dask.config.get(METHOD)
    with get_client("cpu", n_workers=1, verbose=False, env={"OMP_NUM_THREADS": "3"}) as client:
        said["other threads"] = [*client.run(about).values()]
    threads = said["forked"][0]["env"]["OMP_NUM_THREADS"]
    wanted = spawn_environment(dict.fromkeys(THREAD_VARIABLES, threads))
    os.environ["OF_THE_USER"] = "later"
    said["fit"] = [forking.is_for(each) for each in ({**wanted}, {**wanted, "OF_THE_USER": "later"})]
    print(json.dumps(said))
"""


def test_workers_are_forked_where_they_want_that_environment(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    here = tmp_path / "here"
    here.mkdir()
    (here / "timm.py").write_text("raise ImportError('a file of the current folder')")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=here, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert len(said["forked"]) == len(said["again"]) == 2
    threads = said["forked"][0]["env"]["OMP_NUM_THREADS"]
    for worker in said["forked"] + said["again"]:
        assert worker["timm"] and worker["blocked"]
        assert worker["collects"] == said["collects"]
        assert worker["env"]["PYTHONSAFEPATH"] is None
        assert worker["env"]["CURATOR_DASK_DEVICE"] == "cpu"
        for seen in (worker["env"], worker["began"]):
            assert (seen["OMP_NUM_THREADS"], seen["MALLOC_ARENA_MAX"]) == (threads, "1")
    assert (said["method"], said["method after"]) == ("forkserver", "spawn")
    (worker,) = said["other threads"]
    assert (
        not worker["timm"] and worker["env"]["OMP_NUM_THREADS"] == worker["began"]["OMP_NUM_THREADS"] == "3"
    )
    assert said["fit"] == [True, False]
