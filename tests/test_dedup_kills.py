"""Deduplications whose workers and clients are killed, for real: the result is that of an undisturbed one."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time

import dask
import numpy as np
import pyarrow.parquet as pq
import pytest
from test_dedup import mixture, write

from curator_dask import get_client
from curator_dask.dedup import SemanticDeduplication

FILES = 16


def save(address, folder, out):
    """What a client does; None: in this process."""
    find = SemanticDeduplication(eps=0.05, n_clusters=24, keep="hard", exact={"phash": 3})
    if address is None:
        with dask.config.set(scheduler="sync"):
            find(folder).save(out)
    else:
        with get_client(scheduler_address=address, verbose=False):
            find(folder).save(out)


def finished(out):
    """How many files the phases have made."""
    names = [name for _, _, names in os.walk(f"{out}.work") for name in names]
    return sum(not name.endswith(".tmp") for name in names)


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    return pid


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_workers_and_clients_killed_at_random_moments(private_cluster, tmp_path, kills):
    chance = np.random.default_rng(kills)
    rows = 4000
    hashes = chance.integers(0, 2**63, rows // 2)[chance.integers(0, rows // 2, rows)]
    folder = write(tmp_path / "vectors", mixture(chance, rows), files=FILES, phash=hashes.tolist())
    save(None, folder, tmp_path / "undisturbed")
    total = finished(tmp_path / "undisturbed")
    pick = random.Random(kills)
    moments = sorted(pick.randrange(total * 9 // 10) for _ in range(kills))
    victims = ["client", *(pick.choice(["client", "worker", "worker"]) for _ in range(kills - 2)), "worker"]
    pick.shuffle(victims)
    killed = []
    start = multiprocessing.get_context("forkserver").Process
    with private_cluster(n_workers=2) as client:
        arguments = (client.scheduler.address, folder, tmp_path / "out")
        run = start(target=save, args=arguments)
        run.start()
        end = time.monotonic() + 240
        while run.is_alive() or run.exitcode != 0:
            assert time.monotonic() < end, f"not ended after {len(killed)} kills"
            if not run.is_alive():
                assert run.exitcode == -signal.SIGKILL  # and not an error
                run = start(target=save, args=arguments)
                run.start()
            if len(killed) < kills and finished(tmp_path / "out") >= moments[len(killed)]:
                time.sleep(pick.uniform(0, 0.05))
                if victims[len(killed)] == "client":
                    killed.append(kill(run.pid))
                    run.join()
                else:
                    nannies = client.cluster.workers.values()
                    pids = [nanny.process.pid for nanny in nannies if nanny.process and nanny.process.pid]
                    killed += [kill(pick.choice(pids))] if pids else []
            time.sleep(0.01)
    assert len(killed) == kills
    found = pq.read_table(tmp_path / "out/duplicates.parquet")
    assert found.num_rows > rows // 4
    assert found.equals(pq.read_table(tmp_path / "undisturbed/duplicates.parquet"))
