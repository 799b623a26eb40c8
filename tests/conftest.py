"""Fixtures that every test file may use."""

from __future__ import annotations

import gc
import logging
import multiprocessing.forkserver
import os
import signal

import dask
import pytest
import torch
from leftovers import check_nothing_left, cluster_that_is_left_clean
from threadpoolctl import threadpool_limits

from curator_dask import backend, get_client
from curator_dask.cache import ENCODERS, LOADERS
from curator_dask.cluster.local import THREAD_VARIABLES

pytest_plugins = ["browser"]

# A shell that runs the tests in the background has them ignore Ctrl-C, and with them all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What takes a new process seconds to import. Not curator_dask itself: some of its modules read the environment, and a
# worker's own is set after the fork.
HEAVY = (
    "dask.dataframe",
    "distributed",
    "nvidia.dali.fn",
    "pandas",
    "pyarrow.dataset",
    "timm",
    "torch",
    "transformers",
)


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="run also what repeats another test, at length")


#: Files that take longest, the longest first: with several processes the last to end is then a short one.
LONGEST = (
    "faults",
    "compiling",
    "client",
    "remote",
    "cli",
    "parts",
    "workers",
    "docs",
    "images_in_stores",
    "benchmarks",
    "models",
    "export_faults",
    "importing",
    "nemo_scripts",
    "later_parts",
    "dedup_in_stores",
    "loader",
    "late_workers",
    "text",
    "dedup",
    "example",
    "statistics",
    "report",
    "captioning",
    "asking",
    "classification",
    "pipeline",
    "preflight",
    "transforms",
)


def pytest_collection_modifyitems(config, items):
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    if not config.getoption("--runslow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(
                    pytest.mark.skip(reason="repeats another test, or a benchmark: needs --runslow")
                )


def pytest_collection_finish(session):
    """What is imported by now stays: to look at all of it again would cost a quarter of a second, each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session):
    gc.unfreeze()  # else some libraries complain at the end of what is left


@pytest.fixture(scope="session", autouse=True)
def workers_that_start_quickly():
    """Forked from a process that has the heavy modules; spawned, each would take seconds to be there.

    That process imports, and does no more: it has no thread, and has not touched a GPU. What it has loaded took its
    number of threads from the environment of that moment, and malloc its settings: tests of those, and of how users'
    own scripts start their workers (`test_client`, programs run by other tests), are left to spawn.
    """
    multiprocessing.forkserver.set_forkserver_preload(list(HEAVY))
    with pytest.MonkeyPatch.context() as patch:
        for name in THREAD_VARIABLES:
            patch.setenv(name, "1")
        multiprocessing.forkserver.ensure_running()
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        yield


@pytest.fixture
def no_idle_models():
    """Models of tests before are gone: where memory runs out they would go first, before a batch is halved."""
    ENCODERS.clear()


@pytest.fixture(scope="module")
def quiet_transformers():
    """It shows a bar while it saves a model, and warns of what is asked of its own pipelines."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


@pytest.fixture(scope="session", autouse=True)
def one_thread_for_models():
    """Models that run in this process run in one thread, as in the workers above.

    Two threads of a model wait for one another awake, layer by layer; where other processes want the cores too, as
    those of other tests do, that has been seen to take fifteen times the processor time.
    """
    import scipy.linalg  # noqa: F401 - it brings a BLAS of its own

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def as_they_were():
    log = logging.getLogger("curator_dask")
    handlers, level = list(log.handlers), log.level
    yield
    log.handlers[:] = handlers
    log.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def home_of_its_own(tmp_path_factory):
    """Commands of tests leave their notes in no user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CURATOR_DASK_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def messages_as_they_were():
    """What a command of a test shows (`curator_dask.console`) is not shown by the next test."""
    yield from as_they_were()


@pytest.fixture(scope="module", autouse=True)
def messages_as_they_were_before_the_file():
    """The same of a command in a file's own fixtures."""
    yield from as_they_were()


@pytest.fixture(scope="session")
def shared_cluster():
    """Two workers for all tests that neither kill nor stop nor set up workers, to be used by `client`."""
    client = get_client("cpu", n_workers=2, verbose=False)
    # The client goes and the cluster stays: else it would be the default of tests that want none.
    cluster, client.cluster = client.cluster, None
    client.close()
    yield cluster
    cluster.close()


@pytest.fixture
def client(shared_cluster, tmp_path):
    """A client of the shared cluster, on which nothing may be left, nor in `tmp_path`."""
    with get_client(scheduler_address=shared_cluster, verbose=False) as client:
        yield client
        check_nothing_left(client, tmp_path)


@pytest.fixture
def private_cluster(tmp_path):
    """Starts a cluster for one test, as `get_client` does; nothing may be left on it either, nor in `tmp_path`."""

    def start(**options):
        return cluster_that_is_left_clean(tmp_path, **options)

    return start


@pytest.fixture(params=["cpu", "gpu"])
def device(request, monkeypatch):
    """Run the test once a device; without a GPU that is a skip, or a failure if a GPU is required."""
    if request.param == "gpu" and not backend.gpu_count():
        if os.environ.get("CURATOR_DASK_REQUIRE_GPU") == "1":
            pytest.fail("CURATOR_DASK_REQUIRE_GPU=1, but the NVIDIA driver shows no GPU")
        pytest.skip("no GPU")
    monkeypatch.setenv(backend.DEVICE_VARIABLE, request.param)
    _forget_device()
    yield request.param
    _forget_device()


@pytest.fixture
def device_client(device, request, tmp_path):
    """A client of two CPU workers, or of one on a GPU."""
    if device == "cpu":
        yield request.getfixturevalue("client")
        return
    with get_client("gpu", n_workers=1, threads_per_worker=2, verbose=False) as client:
        yield client
        check_nothing_left(client, tmp_path)


@pytest.fixture
def in_this_process():
    """Compute here and now, without a cluster."""
    with dask.config.set(scheduler="sync"):
        yield


class Said(logging.Handler):
    """Keeps messages."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())

    @property
    def text(self):
        return "\n".join(self.messages)


@pytest.fixture
def said(caplog):
    """What the library logs for a user to read."""
    caplog.set_level(logging.INFO, "curator_dask")
    logger, handler = logging.getLogger("curator_dask"), Said()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def _forget_device():
    """A process keeps its device for life, and what it has loaded there; a test process changes it."""
    backend.current.cache_clear()
    ENCODERS.clear()
    LOADERS.clear()
