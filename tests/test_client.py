"""`get_client` with real clusters."""

from __future__ import annotations

import asyncio
import copy
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from types import SimpleNamespace

import dask
import distributed
import psutil
import pytest
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, default_client
from distributed.diskutils import WorkSpace
from distributed.security import Security

from curator_dask import backend, get_client
from curator_dask.cluster import device
from curator_dask.cluster import local as cluster_module
from curator_dask.cluster import presence as presence_module
from curator_dask.cluster.dask_settings import LOST_WORKER, SHUFFLE, hold
from curator_dask.cluster.gpu import gpu_options, with_environment
from curator_dask.cluster.setup import quiet_scratch
from curator_dask.cluster.workers import current_client
from curator_dask.errors import ClusterError, ConfigError
from curator_dask.settings import PATIENCE

NO_GPU = pytest.mark.skipif(backend.gpu_count() > 0, reason="this machine has a GPU")


def as_users_have_them():
    """Workers are spawned: one that is forked has its threads from the process that it is forked from."""
    return dask.config.set({"distributed.worker.multiprocessing-method": "spawn"})


def worker_settings():
    import torch

    from curator_dask import backend

    names = ("CURATOR_DASK_DEVICE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    return {
        "environment": {name: os.environ.get(name) for name in names},
        "torch_threads": torch.get_num_threads(),
        "device": backend.current().device,
    }


def children() -> set[int]:
    """Child processes, without Python's own resource tracker, which stays until the end."""
    found = psutil.Process().children(recursive=True)
    return {child.pid for child in found if "resource_tracker" not in " ".join(child.cmdline())}


@pytest.fixture(scope="module")
def client():
    before = children()
    # Not a `with` block: inside one that client stays Dask's default, whatever is started later.
    with as_users_have_them():
        client = get_client("cpu", n_workers=2, verbose=False)
    yield client
    client.close()
    assert children() == before


def pauses(dask_worker=None, dask_scheduler=None) -> dict[str, float]:
    """Milliseconds between what an event loop does of its own accord."""
    found = (dask_worker or dask_scheduler).periodic_callbacks
    return {
        name: found[name].callback_time for name in ("monitor", "tick", "memory_monitor") if name in found
    }


def test_workers_are_left_alone_and_so_are_those_that_take_their_place(private_cluster):
    with private_cluster(n_workers=1) as client:
        for again in (False, True):
            if again:
                client.restart(timeout=120)
            assert set(client.run(dask.config.get, "distributed.worker.profile.enabled").values()) == {False}
            for each in client.run(pauses).values():
                assert each == {"monitor": 2000, "tick": 500, "memory_monitor": 500}
            assert client.run_on_scheduler(pauses) == {"monitor": 2000, "tick": 500}


def test_cpu_workers_share_the_cores_and_never_see_a_gpu(client):
    settings = client.run(worker_settings)
    assert len(settings) == 2
    threads = max(1, CPU_COUNT // 2)
    for each in settings.values():
        assert each["torch_threads"] == threads
        assert each["device"] == "cpu"
        assert each["environment"] == {
            "CURATOR_DASK_DEVICE": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": str(threads),
        }
    assert {each["nthreads"] for each in client.scheduler_info(n_workers=-1)["workers"].values()} == {1}


@pytest.mark.parametrize(
    ("cores", "memory_gib", "given", "workers_and_threads"),
    [
        (8, 64, (None, None), (8, 1)),
        (8, 13, (None, None), (4, 1)),
        (8, 1, (None, None), (1, 1)),
        (8, 64, (None, 4), (2, 4)),
        (8, 64, (3, None), (3, 1)),
        (8, 1, (3, 2), (3, 2)),
    ],
)
def test_default_numbers_of_workers(cores, memory_gib, given, workers_and_threads):
    assert cluster_module.cpu_workers(*given, cores, memory_gib * 2**30) == workers_and_threads


def test_a_second_client_has_a_cluster_of_its_own_and_closes_it(client, device, said):
    before, environment = children(), dict(os.environ)
    with warnings.catch_warnings(record=True) as caught, as_users_have_them():
        warnings.simplefilter("always")
        second = get_client(device, n_workers=1, env={"OMP_NUM_THREADS": 1})
    address = second.scheduler.address
    try:
        assert [each for each in caught if "Port" in str(each.message)] == []
        assert default_client() is second
        assert address != client.scheduler.address
        (settings,) = second.run(worker_settings).values()
        assert settings["device"] == settings["environment"]["CURATOR_DASK_DEVICE"] == device
        if device == "cpu":
            assert settings["torch_threads"] == 1  # not all cores: the caller's `env` goes before the default
        still_up, line = said.messages
        assert (
            f"the cluster at {client.scheduler.address} that get_client() started before is still up"
            in still_up
        )
        assert line.startswith(f"Dask {device} cluster")
        assert second.dashboard_link in line or address in line
    finally:
        second.close()
    assert children() == before
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    assert [os.environ.get(name) for name in threads] == [environment.get(name) for name in threads]
    assert client.submit(lambda: 7).result() == 7
    # Where work goes now is said, once.
    assert [current_client(), current_client()] == [client, client]
    (goes,) = said.messages[2:]
    assert f"the client of {address} is closed" in goes
    assert client.scheduler.address in goes


def test_an_asynchronous_client(client):
    async def use():
        async with Client(client.scheduler.address, asynchronous=True) as ours:
            with pytest.raises(ClusterError, match=r"asynchronous.*get_client.*to_thread"):
                current_client()
            return await asyncio.to_thread(current_client) is ours

    assert asyncio.run(use())


@pytest.fixture
def certificates(tmp_path):
    """Real ones, in files."""
    made, settings = Security.temporary(), {}
    names = {"tls_ca_file": "ca-file", "tls_client_cert": "cert", "tls_client_key": "key"}
    for name, setting in names.items():
        (tmp_path / name).write_text(getattr(made, name), encoding="utf-8")
        roles = [""] if setting == "ca-file" else ["client.", "scheduler.", "worker."]
        settings |= {f"distributed.comm.tls.{role}{setting}": str(tmp_path / name) for role in roles}
    return settings


def test_tls(certificates):
    with dask.config.set(certificates):
        ours = Security()
    with pytest.raises(ConfigError, match=r"protocol='tls' with security=None.*security=True"):
        get_client("cpu", protocol="tls")
    with pytest.raises(ConfigError, match="security: tls_client_key='/no/key' is not a file"):
        get_client(scheduler_address="tls://h:1", security=Security(tls_client_key="/no/key"))
    with get_client("cpu", n_workers=1, protocol="tls", security=ours) as client:
        address = client.scheduler.address
        assert address.startswith("tls://")
        assert list(client.run(lambda dask_worker: dask_worker.address[:6]).values()) == ["tls://"]
        with pytest.raises(ClusterError, match=r"It speaks TLS: give security="):
            get_client(scheduler_address=address)
        with pytest.raises(ClusterError, match=r"It speaks TLS: give security="):
            get_client(scheduler_address=address, security=Security.temporary(), timeout=2)
        with pytest.raises(ClusterError, match=r"that it does not speak TLS"):
            get_client(scheduler_address=address.replace("tls", "tcp"), timeout=2)
        with get_client(scheduler_address=address, security=ours) as second:
            assert second.submit(lambda: 7).result() == 7
        with dask.config.set(certificates), get_client(scheduler_address=address) as third:
            assert third.submit(lambda: 8).result() == 8


def in_force():
    return dask.config.get(LOST_WORKER.name), dask.config.get(SHUFFLE.name)


@pytest.fixture
def config(client):
    """Dask's configuration as it is outside of clusters of ours: that of the module is as if it were not."""
    held = client._held_settings.pop_all()
    held.close()
    yield copy.deepcopy(dask.config.config)
    client._held_settings.push(hold((LOST_WORKER, SHUFFLE)))


@pytest.mark.parametrize("first", [0, 1])
def test_the_configuration_of_dask_is_left_as_it_was_found(config, first):
    found = in_force()
    clients = [get_client("cpu", n_workers=1, verbose=False) for _ in range(2)]
    assert in_force() == ("10000 days", "tasks") != found
    assert dask.config.get("distributed.worker.profile.enabled") is True, "that of other clusters"
    clients.pop(first).close()
    assert in_force() == ("10000 days", "tasks")
    clients[0].close()
    clients[0].close()
    assert dask.config.config == config


def test_the_configuration_while_connected(config):
    with LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster:
        before = copy.deepcopy(dask.config.config)
        with get_client(scheduler_address=cluster, verbose=False):
            assert in_force() == (config["distributed"]["deploy"]["lost-worker-timeout"], "tasks")
        assert dask.config.config == before == config
        second = get_client(scheduler_address=cluster, verbose=False)
        second.shutdown()
        assert dask.config.config == config


@pytest.mark.parametrize("own", ["p2p", "disk"])
def test_a_way_to_shuffle_that_the_user_chose_is_kept(config, own):
    with dask.config.set({SHUFFLE.name: own}), get_client("cpu", n_workers=1, verbose=False):
        assert in_force() == ("10000 days", own)
    assert dask.config.config == config


def test_what_the_user_changes_meanwhile_stays(config):
    with dask.config.set({SHUFFLE.name: None}):
        with get_client("cpu", n_workers=1, verbose=False):
            dask.config.set({SHUFFLE.name: "disk"})
        assert dask.config.get(SHUFFLE.name) == "disk"
    assert dask.config.config == config


@pytest.mark.parametrize(
    "options",
    [
        {"cluster_type": "cpu", "n_workers": 1, "preload": "no_such_module"},
        {"scheduler_address": "tcp://127.0.0.1:9", "timeout": 0.5},
    ],
    ids=["workers that cannot start", "nobody there"],
)
def test_the_configuration_where_no_cluster_comes(config, options):
    with pytest.raises(ClusterError):
        get_client(**options, verbose=False)
    assert dask.config.config == config


def test_workers_that_a_cluster_adds_are_left_alone_too(config):
    own = {"distributed.comm.retry.count": 7}
    with get_client("cpu", n_workers=1, verbose=False, config=own) as client:
        client.cluster.scale(2)
        client.wait_for_workers(2, timeout=60)
        assert list(client.run(dask.config.get, "distributed.worker.profile.enabled").values()) == [False] * 2
        assert list(client.run(dask.config.get, "distributed.comm.retry.count").values()) == [7] * 2
    assert dask.config.config == config


class StallsOnce(asyncio.DefaultEventLoopPolicy):
    """What a machine that stands still looks like to distributed, which gives a new event loop 10 s, here one."""

    stalls = 1

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        if self.stalls:
            self.stalls -= 1
            time.sleep(1.5)
        return super().new_event_loop()


class TenTimesAsFast(threading.Event):
    def wait(self, timeout=None):
        return super().wait(timeout and timeout / 10)


@pytest.fixture
def stalls_once(monkeypatch):
    clock = SimpleNamespace(**{**vars(threading), "Event": TenTimesAsFast})
    monkeypatch.setattr(distributed.utils, "threading", clock)
    before = asyncio.get_event_loop_policy()
    policy = StallsOnce()
    asyncio.set_event_loop_policy(policy)
    yield policy
    asyncio.set_event_loop_policy(before)


def test_a_machine_that_stands_still_while_the_cluster_starts(stalls_once):
    with get_client("cpu", n_workers=1, verbose=False) as client:
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3
    assert stalls_once.stalls == 0


@pytest.mark.usefixtures("stalls_once")
def test_a_machine_that_stands_still_for_too_long():
    before = children()
    with pytest.raises(ClusterError, match=r"no event loop runs after 0.5 s.*raise timeout \(now 0.5 s\)"):
        get_client("cpu", n_workers=1, timeout=0.5, verbose=False)
    assert children() == before


@pytest.mark.parametrize("how", ["address", "cluster", "file"])
def test_connecting_to_a_running_cluster_and_leaving_it_alone(client, how, tmp_path, said):
    options = {"scheduler_address": client.scheduler.address}
    if how == "cluster":
        options = {"scheduler_address": client.cluster}
    if how == "file":
        identity = {"type": "Scheduler", "address": client.scheduler.address, "workers": {}}
        (tmp_path / "scheduler.json").write_text(json.dumps(identity), encoding="utf-8")
        options = {"scheduler_file": tmp_path / "scheduler.json"}
    # A script that passes every option on with its default is not refused.
    with get_client("gpu", **options, n_workers=None, rmm_pool_size="1024M", protocol="tcp") as second:
        assert second.scheduler.address == client.scheduler.address
        assert second.submit(lambda: 7).result() == 7
    assert [client.scheduler.address in line for line in said.messages] == [True]
    assert client.submit(lambda: 8, pure=False).result() == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cluster_type": "tpu"}, "cluster_type='tpu': expected 'auto', 'cpu' or 'gpu'"),
        ({"scheduler_address": "tcp://h:1", "scheduler_file": "f"}, "'tcp://h:1' .*'f' were both given"),
        ({"scheduler_address": 8786}, "scheduler_address=8786: expected an address"),
        (
            {"scheduler_address": "tcp://h:1", "n_workers": 2, "rmm_async": False, "memory_limit": "1GB"},
            "memory_limit, n_workers, rmm_async: only for a new cluster",
        ),
        ({"scheduler_address": "tls://h:1", "security": True}, "security=True makes certificates for a new"),
        ({"cluster_type": "cpu", "n_workers": 0}, "n_workers=0: expected a whole number"),
        ({"cluster_type": "cpu", "threads_per_worker": 1.5}, "threads_per_worker=1.5: expected a whole"),
        ({"cluster_type": "cpu", "timeout": 0}, "timeout=0: expected a positive"),
        ({"cluster_type": "cpu", "n_worker": 2}, "unknown option n_worker=2 .*did you mean n_workers"),
        ({"cluster_type": "cpu", "processes": False}, "processes=False: get_client starts clusters of proc"),
    ],
)
def test_options_that_cannot_be_carried_out(options, message):
    before = children()
    with pytest.raises(ConfigError, match=message):
        get_client(**options)
    assert children() == before


@NO_GPU
def test_gpu_cluster_without_a_gpu():
    with pytest.raises(ClusterError, match=r"no GPU.*nvidia-smi.*cluster_type='cpu'.*'auto'"):
        get_client("gpu")


def test_gpu_cluster_without_its_packages():
    problem = device.gpu_problem(1, ["dask_cuda", "cudf"])
    assert "dask_cuda, cudf" in problem
    assert 'pip install "curator-dask[cuda13]"' in problem
    assert "[cuda12]" in problem
    assert device.gpu_problem(1, []) is None


@pytest.mark.parametrize(
    ("gpus", "missing", "variable", "expected"),
    [
        (0, [], "", ("cpu", "no GPU found")),
        (2, ["cudf"], "", ("cpu", "cudf")),
        (2, [], "", ("gpu", "2 GPUs found")),
        (2, [], "cpu", ("cpu", "CURATOR_DASK_DEVICE=cpu")),
    ],
)
def test_what_auto_takes_and_why(gpus, missing, variable, expected):
    chosen, reason = device.choose_device("auto", gpus, missing, variable)
    assert chosen == expected[0]
    assert expected[1] in reason


GPU_DEFAULTS = {
    "n_workers": None,
    "threads_per_worker": None,
    "nvlink_only": False,
    "protocol": "tcp",
    "enable_spilling": True,
    "set_torch_to_use_rmm": False,
    "rmm_pool_size": "1024M",
    "rmm_async": True,
    "rmm_maximum_pool_size": None,
    "rmm_managed_memory": False,
    "rmm_release_threshold": None,
}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"n_workers": 2, "threads_per_worker": 2, "rmm_async": True, "rmm_pool_size": None}),
        ({"rmm_async": False}, {"rmm_async": False, "rmm_pool_size": "1024M", "enable_cudf_spill": True}),
        ({"rmm_managed_memory": True}, {"rmm_async": False, "rmm_managed_memory": True}),
        ({"set_torch_to_use_rmm": True}, {"rmm_allocator_external_lib_list": ["torch"]}),
        ({"n_workers": 1, "threads_per_worker": 3}, {"n_workers": 1, "threads_per_worker": 3}),
    ],
)
def test_options_of_a_gpu_cluster(given, expected):
    mapped = gpu_options({**GPU_DEFAULTS, **given}, 2)
    assert {name: mapped[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_workers": 3}, "n_workers=3.* at most 2"),
        ({"nvlink_only": True}, "nvlink_only=True needs protocol='ucx', got protocol='tcp'"),
        ({"rmm_async": False, "rmm_release_threshold": "1GB"}, "rmm_release_threshold='1GB'.*rmm_async=True"),
        (
            {"rmm_async": False, "rmm_pool_size": None, "rmm_maximum_pool_size": "1GB"},
            "rmm_maximum_pool_size",
        ),
    ],
)
def test_options_of_a_gpu_cluster_that_exclude_one_another(given, message):
    with pytest.raises(ConfigError, match=message):
        gpu_options({**GPU_DEFAULTS, **given}, 2)


def test_workers_are_told_their_device_whatever_this_process_was_told(monkeypatch):
    """Of LocalCUDACluster only that it takes its workers from ``new_worker_spec`` can be seen without a GPU."""
    monkeypatch.setenv(backend.DEVICE_VARIABLE, "gpu")
    env = {backend.DEVICE_VARIABLE: "cpu", "MINE": "1"}
    with (
        with_environment(LocalCluster, env)(n_workers=0, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        cluster.scale(1)
        found = client.submit(lambda: {name: os.environ.get(name) for name in env}).result(timeout=60)
    assert found == env


def test_a_scheduler_without_workers(said):
    with (
        LocalCluster(n_workers=0, dashboard_address=":0") as empty,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(presence_module, "_WARN_EVERY", 1)
        patch.setattr(presence_module, "_LOOK_EVERY", 0.5)
        patch.setenv(PATIENCE.name, "3s")
        for timeout, expected in ((0.5, r"timeout .*\(now 0\.5\)"), (None, rf"{PATIENCE.name} .*\(now 3\)")):
            with pytest.raises(
                ClusterError, match=rf"the cluster has no worker, for .* s\..*logs.*{expected}"
            ):
                get_client(scheduler_address=empty, timeout=timeout)
    assert "the cluster has no worker, for 1 s now; waiting 2 s more" in said.text


def test_an_address_where_no_scheduler_is():
    start = time.monotonic()
    with pytest.raises(
        ClusterError, match=r"no Dask scheduler answered at 'tcp://127\.0\.0\.1:9' within 1 s"
    ):
        get_client(scheduler_address="tcp://127.0.0.1:9", timeout=1)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("text", [None, "", "{}", "[1]"])
def test_a_scheduler_file_that_cannot_be_used(tmp_path, text):
    path = tmp_path / "scheduler.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ClusterError, match=r"scheduler\.json.*dask scheduler --scheduler-file"):
        get_client(scheduler_file=path, timeout=1)


def run_script(folder, source):
    """Run a script as a user does; its exit status, output and the processes that it left."""
    path = folder / "script.py"
    path.write_text(source, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    output, errors = process.communicate(timeout=120)
    deadline = time.monotonic() + 10  # the resource tracker sees the end of its parent a moment later
    left = in_session(process.pid)
    while left and time.monotonic() < deadline:
        time.sleep(0.2)
        left = in_session(process.pid)
    return process.returncode, output, errors, left


def in_session(session: int) -> list[int]:
    found = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == session:
                found.append(pid)
        except ProcessLookupError:
            continue
    return found


@pytest.mark.parametrize(
    "call",
    [
        "client = get_client('cpu', n_workers=2)",
        "def main():\n    return get_client('cpu', n_workers=2)\nfor _ in range(1):\n    client = main()",
    ],
    ids=["plain", "in a function"],
)
def test_a_script_without_main_guard_ends_before_the_first_process(tmp_path, call):
    start = time.monotonic()
    code, output, errors, left = run_script(
        tmp_path, f"from curator_dask import get_client\n{call}\nprint('ran')\n"
    )
    assert code == 1
    assert "ran" not in output
    assert errors.count("Traceback") == 1
    assert "ClusterError" in errors.splitlines()[-6]
    assert "if __name__ == '__main__':" in errors
    assert left == []
    assert time.monotonic() - start < 100


def test_a_worker_that_runs_the_script_again_stops_with_the_hint(tmp_path):
    # The test looks like a guard and is none, so that only the workers find out.
    source = (
        "from curator_dask import get_client\nif '__name__':\n    get_client('cpu', n_workers=1, timeout=8)\n"
    )
    code, _, errors, left = run_script(tmp_path, source)
    assert code == 1
    assert "the script starts a cluster outside `if __name__ == '__main__':`" in errors  # the worker's
    last = errors[errors.rindex("ClusterError") :]
    assert "the cpu cluster did not start" in last
    assert "if __name__ == '__main__':" in last
    assert left == []


def test_workers_that_are_slower_than_the_timeout_end_it(tmp_path):
    source = """
import time
from curator_dask import get_client
if __name__ == "__mp_main__":
    time.sleep(600)
if __name__ == "__main__":
    get_client("cpu", n_workers=1, timeout=4)
"""
    code, _, errors, left = run_script(tmp_path, source)
    assert code == 1
    assert "the cpu cluster did not start" in errors and "raise timeout (now 4 s)" in errors
    assert left == []


def test_a_scratch_folder_that_another_cluster_has_removed_is_no_error(tmp_path, caplog):
    quiet_scratch()
    workspace = WorkSpace(str(tmp_path))
    folder = workspace.new_work_dir(prefix="worker-")
    shutil.rmtree(folder.dir_path)
    folder.release()
    workspace._on_remove_error(os.rmdir, "kept", PermissionError(errno.EACCES, "no"))
    assert [record.args[0] for record in caplog.records if record.name == "distributed.diskutils"] == ["kept"]


def test_a_script_that_imports_torch_first_and_does_not_close_its_client(tmp_path):
    """Its worker has all the threads, and it ends quietly."""
    source = """
import json, torch
from curator_dask import get_client
if __name__ == "__main__":
    client = get_client("cpu", n_workers=1, verbose=False)
    print(json.dumps(list(client.run(torch.get_num_threads).values())))
"""
    code, output, errors, left = run_script(tmp_path, source)
    assert (code, errors, left) == (0, "", [])
    assert json.loads(output) == [CPU_COUNT]  # distributed alone would leave 1
