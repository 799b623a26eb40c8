"""The benchmark of one GPU runs, on a CPU too, and what it concludes follows from what it measured."""

from __future__ import annotations

import json
import operator
import os
import signal
import time
from concurrent.futures import BrokenExecutor

import numpy as np
import pytest

from benchmarks import bare, bare_gpu, gpu, gpu_check, gpu_cluster, gpu_report, gpu_trace, harness
from benchmarks.gpu_run import Run
from benchmarks.harness import Case, summary
from benchmarks.photographs import make_photographs
from curator_dask import backend
from curator_dask.cache import ENCODERS
from curator_dask.decode.loader import Loader
from curator_dask.decode.spec import LoaderSpec
from curator_dask.models.timm import TimmSpec

VERDICTS = {"cpu": {"not run"}, "gpu": {"reached", "missed", "not run"}}


def check_rates(result, names):
    assert set(names) <= set(result["cases"])
    for name, case in result["cases"].items():
        rate, seconds = case["items_per_second"], case["seconds"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
        assert len(rate["runs"]) == len(seconds["runs"]) == result["settings"]["repeats"]
        done = [a * b for a, b in zip(rate["runs"], seconds["runs"], strict=True)]
        assert done == pytest.approx([round(images) for images in done], rel=2e-3), name


def check_ratios(result):
    for name, ratio in result["ratios"].items():
        top, _, bottom = name.partition(" ÷ ")
        one, other = (
            result["cases"][case]["items_per_second"]["runs"]
            for case in (top, f"{top.partition(': ')[0]}: {bottom}")
        )
        assert ratio["runs"] == pytest.approx([a / b for a, b in zip(one, other, strict=True)], rel=2e-3)


def test_whole_run(device, tmp_path, monkeypatch):
    """All sections on the smallest case; nothing fails, every figure is there, every goal has a verdict."""
    if device == "cpu":
        monkeypatch.setattr(harness, "START_METHOD", "forkserver")
    path = tmp_path / "gpu.json"
    gpu.main(["--device", device, "--quick", "--no-compile", "--out", str(path)])
    result = json.loads(path.read_text())
    assert result["script"] == "gpu" and result["device"] == device and result["quick"]
    assert {state["state"] for state in result["sections"].values()} == {"done"}, result["sections"]
    large, small = gpu.MODELS[device]
    assert set(result["sections"]) == {
        *("photographs", large, small),
        *(f"trace, {large}", "decode sweep", "forward sweep"),
    }
    forward = [f"{model}: forward, eager, autocast" for model in (large, small)]
    whole = [f"{model}: end to end, 1 task" for model in (large, small)]
    check_rates(result, [*forward, *whole])
    check_ratios(result)
    for top, bottom in zip(whole, forward, strict=True):
        if device == "cpu":  # elsewhere another number of tasks, or another way, may be the fastest
            assert f"{top} ÷ {bottom.partition(': ')[2]}" in result["ratios"]
    assert any(f"{small}: DALI, " in name for name in result["cases"])
    assert set(whole) <= set(result["through"])
    images = result["settings"]["images"]
    for name, label in zip(whole, (large, small), strict=True):
        case = result["cases"][name]
        done = case["items_per_second"]["runs"][0] * case["seconds"]["runs"][0]
        assert done == pytest.approx(images[label], rel=2e-3)
    assert set(result["goals"]) == set(gpu_report.GOALS)
    for goal in result["goals"].values():
        assert goal["verdict"] in VERDICTS[device]
        assert goal["why"] or goal["verdict"] != "not run"
    for sweep, least in (("forward", 2), ("decode", 2)):
        assert len(result["sweeps"][sweep]) >= least
        assert all(entry["images_per_second"] > 0 for entry in result["sweeps"][sweep])
    trace = result["traces"][large]
    assert trace["images"] == result["settings"]["photographs"]
    times = [entry["ms"] for entry in trace["operators"]]
    assert times == sorted(times, reverse=True) and times[0] > 0
    assert trace["pixel_bytes"] % trace["images"] == 0 and trace["encoded_bytes"] > 1000 * trace["images"]
    if device == "gpu":
        assert result["goals"]["copies"]["verdict"] != "not run" and trace["kernels"]
        assert result["utilisation"]
    else:
        assert "no GPU" in str(result["not_run"]) and not result["utilisation"]
        assert "copies" not in trace


def test_no_time_is_no_failure(device, tmp_path):
    """What is left out is said, and the JSON is there."""
    path = tmp_path / "gpu.json"
    gpu.main(["--device", device, "--quick", "--minutes", "-1", "--out", str(path)])
    result = json.loads(path.read_text())
    assert result["cases"] == {} and {goal["verdict"] for goal in result["goals"].values()} == {"not run"}
    assert all("s needed" in state["why"] for state in result["sections"].values())


def rates(*values):
    return {"items_per_second": summary(values)}


def gpu_run(*given):
    return Run(gpu.options_of_command_line(["--device", "gpu", "--quick", *given]))


CASES = {
    "ViT-L/14: end to end, 1 task": rates(2400.0, 2410.0),
    "ViT-L/14: end to end, 2 tasks": rates(2510.0, 2520.0),
    "ViT-L/14: end to end, 1 task, compile=True": rates(1200.0, 1205.0),
    "ViT-L/14: forward, eager, autocast": rates(2500.0, 2500.0),
    "ViT-L/14: forward, compiled, autocast": rates(3000.0, 3000.0),
    "ViT-B/32: end to end, 1 task": rates(9600.0, 9700.0),
    "ViT-B/32: DALI, decode + transform, 16 threads": rates(10000.0, 10000.0),
}


def judged(cases=CASES, traces=(), name="NVIDIA H100 80GB HBM3"):
    through = dict.fromkeys(cases, "LocalCUDACluster")
    results = {"models": gpu.MODELS["gpu"], "cases": cases, "through": through, "traces": dict(traces)}
    return gpu_report.judge("gpu", [name], results)


def test_verdicts():
    """The strictest pair decides: the fastest bare way, whichever way the package runs its model."""
    ratios, goals = judged()
    assert {key: goal["verdict"] for key, goal in goals.items()} == {
        "ratio": "missed",
        "rate": "reached",
        "decode": "reached",
        "copies": "not run",
    }
    best = "ViT-L/14: end to end, 2 tasks"
    assert goals["ratio"]["why"] == f"{best} ÷ forward, compiled, autocast, through LocalCUDACluster"
    assert goals["ratio"]["found"]["median"] == pytest.approx(2515 / 3000, rel=1e-3)
    assert ratios[f"{best} ÷ forward, eager, autocast"]["min"] == pytest.approx(1.004)
    compiled = "ViT-L/14: end to end, 1 task, compile=True ÷ end to end, 1 task"
    assert ratios[compiled]["runs"] == [0.5, 0.5]
    assert judged(name="NVIDIA L4")[1]["rate"]["verdict"] == "not run"
    assert {goal["verdict"] for goal in judged({})[1].values()} == {"not run"}


def test_a_failure_costs_its_own_part():
    """A case that cannot run, one that fails later, and a section that fails: the others' figures stay."""
    run = gpu_run("--repeats", "2")
    calls = []

    def breaks_later():
        calls.append("broken")
        if len(calls) == 3:
            raise MemoryError("full")
        return 10

    def impossible():
        raise ImportError("no module named 'nothing'")

    cases = {"a": lambda: 10, "b": impossible, "c": breaks_later}
    run.section("s", 0, lambda: run.measure({name: Case(work) for name, work in cases.items()}, 60))
    run.section("t", 0, impossible)
    found = run.results
    assert set(found["cases"]) == {"a", "c"}
    assert len(found["cases"]["a"]["items_per_second"]["runs"]) == 1
    assert found["not_run"]["b"] == "ImportError: no module named 'nothing'"
    assert found["not_run"]["round 2 of a, c"] == "MemoryError: full"
    assert found["sections"]["s"]["state"] == "done" and found["sections"]["t"]["state"] == "failed"
    assert [name for name, _, _ in run.monitor.runs] == ["a", "c", "a", "c"]  # round 2 began with c


def test_rounds_end_with_the_time():
    run = gpu_run("--repeats", "50")
    run.measure({"a": Case(lambda: time.sleep(0.1) or 1)}, 1.0)
    assert 1 < len(run.results["cases"]["a"]["items_per_second"]["runs"]) < 12


def test_a_process_that_dies_is_replaced():
    with gpu_run() as run:
        (pid,) = run.bare("a", operator.add).pids
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BrokenExecutor):
            run.in_team("a", operator.add)
        assert run.in_team("a", operator.add) == 1  # part and parts


def test_utilisation_is_that_of_the_runs():
    """The first run is a warm-up; what happens between runs is nobody's."""
    monitor = gpu_report.Monitor()
    monitor.runs = [("a", 0.0, 1.0), ("a", 2.0, 3.0), ("b", 3.0, 4.0), ("a", 5.0, 6.1)]
    monitor.samples = [
        (time, used, 10.0, 1000.0 + used)
        for time, used in [(0.5, 1.0), (2.5, 90.0), (3.5, 2.0), (4.5, 3.0), (5.5, 70.0), (6.0, 80.0)]
    ]
    found = monitor.utilisation()
    assert set(found) == {"a"}
    assert found["a"]["samples"] == 3 and found["a"]["gpu_mean"] == 80 and found["a"]["gpu_p10"] == 70
    assert found["a"]["memory_mib_max"] == 1090
    assert found["a"]["last_run"] == [[0.5, 70.0, 10.0, 1070.0], [1.0, 80.0, 10.0, 1080.0]]


def event(cat, start, length, **args):
    name = args.pop("name", "kernel")
    return {"cat": cat, "name": name, "ts": start, "dur": length, "args": args}


def test_streams_and_kernels_of_a_trace():
    events = [
        event("kernel", 0.0, 100.0, stream=7, name="gemm"),
        event("kernel", 100.0, 100.0, stream=7, name="gemm"),
        event("kernel", 400.0, 100.0, stream=7, name="softmax"),
        event("kernel", 150.0, 100.0, stream=13, name="resize"),
        event("gpu_memcpy", 240.0, 60.0, stream=13, bytes=8, name="Memcpy HtoD (Pinned -> Device)"),
        event("cpu_op", 0.0, 9000.0),
    ]
    assert gpu_trace.streams_of(events) == {
        "device_busy": 0.8,
        "model_busy": 0.6,
        "gaps": 1,
        "gaps_ms": 0.2,
    }
    assert gpu_trace.kernels_of(events)[0] == {"name": "gemm", "calls": 2, "ms": 0.2}
    assert gpu_trace.streams_of([]) == {}


@pytest.mark.parametrize(
    ("extra", "verdict"),
    [
        ([], "reached"),
        ([("DtoH (Device -> Pageable)", 150_528 * 256)], "missed"),  # a batch to the host
        ([("HtoD (Pinned -> Device)", 150_528 * 256)], "missed"),  # a batch from it
        ([("DtoH (Device -> Pageable)", 150_528)] * 11, "missed"),  # image by image
        ([("DtoD (Device -> Device)", 150_528 * 256)] * 4, "reached"),  # into a batch, on the device
    ],
)
def test_copies_of_pixels(extra, verdict):
    copies = [("DtoH (Device -> Pageable)", 256 * 768 * 4)] * 4
    copies += [("HtoD (Pinned -> Device)", 128 * 44_000)] * 8
    events = [
        event("gpu_memcpy", number, 1.0, stream=1, bytes=size, name=f"Memcpy {kind}")
        for number, (kind, size) in enumerate([*copies, *extra])
    ]
    trace = {
        "copies": gpu_trace.copies_of(events),
        "pixel_bytes": 1024 * 150_528,
        "batch_pixel_bytes": 256 * 150_528,
        "vector_bytes": 1024 * 768 * 4,
        "encoded_bytes": 1024 * 44_000,
    }
    goal = judged(traces={"ViT-L/14": trace})[1]["copies"]
    assert goal["verdict"] == verdict, goal


def test_bare_dali_makes_the_loaders_pixels(monkeypatch, tmp_path):
    """What decoding is compared with does the same work: two passes, on the crop's region."""
    monkeypatch.setenv(backend.DEVICE_VARIABLE, "cpu")
    monkeypatch.setattr(bare_gpu, "CHUNK", 4)
    backend.current.cache_clear()
    folder = make_photographs(6, 1, tmp_path / "photographs")
    transform = gpu.transform_of(gpu.MODELS["gpu"]["ViT-B/32"])
    settings = bare_gpu.Decoding(1, transform)
    assert bare_gpu.decode(settings, folder, 7, 0, 1) == 12  # twice over six
    (images,) = bare_gpu._pipeline(settings, folder, 0, 1).run()
    made = np.stack([np.asarray(images[number]) for number in range(len(images))])
    loader = Loader(LoaderSpec((transform,), batch_sizes=(4,), num_threads=1))
    expected = next(iter(loader.load(enumerate(bare.encoded(folder, 0, 0, 1))))).pixels.numpy()
    assert made.shape == (4, 224, 224, 3)
    assert np.abs(made.astype(int) - expected.astype(int)).mean() < 0.05
    backend.current.cache_clear()


def test_a_model_that_was_not_compiled_is_not_called_so(monkeypatch):
    """Where a worker cannot compile a model it runs it as it is, which is another case."""
    monkeypatch.setenv(backend.DEVICE_VARIABLE, "cpu")
    backend.current.cache_clear()
    model = "test_vit.r160_in1k"
    spec = TimmSpec(model, pretrained=False, compile=True)
    with ENCODERS.lease(spec, spec.build) as encoder:
        assert not gpu_cluster.runs_compiled(model) and not gpu_cluster.runs_compiled("another")
        encoder._run.compiled_for = 8
        assert gpu_cluster.runs_compiled(model)
    ENCODERS.clear()
    backend.current.cache_clear()


def test_a_plain_cluster_where_dask_cuda_is_not(monkeypatch):
    """Where no cluster of GPUs can be had, one with a worker that is told to use the GPU takes its place."""
    if backend.gpu_count():
        pytest.skip("there is a GPU")
    monkeypatch.setenv(backend.DEVICE_VARIABLE, "cpu")
    with gpu_run() as run:
        client, through = run.cluster(2)
        assert client.run(gpu_cluster.device_of_worker).popitem()[1] == "cpu"
        assert list(client.nthreads().values()) == [2]
        assert through.startswith("LocalCluster with a worker on the GPU (")
    assert client.status == "closed"


def test_monitor_reads_the_drivers_figures(monkeypatch, tmp_path):
    """With a program of that name in place of the driver's, which is not on every machine."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *utilization*) echo "87, 45, 20480";; *) echo "NVIDIA H100";; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(gpu_report, "SAMPLE_EVERY", 0.02)
    with gpu_report.Monitor() as monitor:
        work = monitor.watched("a", lambda: time.sleep(0.3) or 1)
        work()
        work()
    found = monitor.utilisation()["a"]
    assert found["gpu_mean"] == 87 and found["memory_bus_mean"] == 45 and found["memory_mib_max"] == 20480
    assert found["samples"] == len(found["last_run"]) > 1


@pytest.mark.slow
def test_the_check_goes_on_after_a_step_that_fails(tmp_path, monkeypatch, capsys):
    steps = (
        gpu_check.Step("versions", ("-c", "print('v')"), 1),
        gpu_check.Step("crash", ("-c", "import os; print('why'); os.abort()"), 1),
        gpu_check.Step("slow", ("-c", "import time; time.sleep(60)"), 0.01),
        gpu_check.tests("types", 1, "test_holding", every=True),
    )
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    out = tmp_path / "check.json"
    assert gpu_check.main(["--device", "cpu", "--out", str(out)]) == 1
    found = json.loads(out.read_text())["steps"]
    states = {name: step["state"] for name, step in found.items()}
    assert states == {"versions": "ok", "crash": "exit code -6", "slow": "no time left", "types": "ok"}
    assert "why" in found["crash"]["said"]
    assert found["types"]["passed"] > 30 and all("test_holding" in each for each in found["types"]["slowest"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*states, "written"]


def test_what_the_check_names_is_there():
    files = [each for step in gpu_check.STEPS for each in step.arguments if each.startswith("tests/")]
    assert len(files) > 8 and all((gpu_check.ROOT / each).is_file() for each in files)
