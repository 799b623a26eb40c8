"""One run without a cluster under torch's profiler: operators, kernels, gaps, copies between host and device."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks import bare, harness
from benchmarks.bare_gpu import data_config
from curator_dask import backend
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.image.embedders import TimmImageEmbedder

TOP = 12  # operators and kernels that a trace names
GAP = 50.0  # microseconds between two kernels of a stream that count as a gap


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process: what it leaves in memory, or that it crashes, is that process's own."""
    context = multiprocessing.get_context(harness.START_METHOD)
    with ProcessPoolExecutor(1, context, initializer=_take_environment, initargs=({**os.environ},)) as pool:
        return pool.submit(function, *arguments).result()


def _take_environment(values: Mapping[str, str]) -> None:
    """In a process that was forked: it has the environment of another moment."""
    os.environ.update(values)


def trace(model_name: str, batch_size: int, threads: int, folder: Path) -> dict[str, Any]:
    """Embed the images of a folder twice in this process, the second time under torch's profiler.

    CUDA's tracing sees the whole process: DALI's copies and kernels too. The profiler slows the launching of
    kernels down, so that gaps are rather too long.

    Parameters
    ----------
    model_name
        timm's name; the weights are random.
    batch_size, threads
        Of the embedder.
    folder
        Shards, one partition each, one after the other.

    Returns
    -------
    dict
        ``images``; bytes of all: ``encoded_bytes``, ``pixel_bytes`` (as they enter the model, uint8),
        ``vector_bytes``; ``batch_pixel_bytes``; ``operators`` (name, calls, milliseconds) by the device's own time;
        on a GPU also ``kernels`` (the same), ``copies`` (`copies_of`), and ``streams`` (`streams_of`).
    """
    from torch.profiler import ProfilerActivity, profile

    on_gpu = backend.current().device == "gpu"
    embedder = TimmImageEmbedder(
        model_name, pretrained=False, batch_size=batch_size, num_threads_per_worker=threads
    )
    dataset = embedder(ImageTextPairDataset.from_webdataset(str(folder)))
    dataset.metadata.compute(scheduler="sync")
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        frame = dataset.metadata.compute(scheduler="sync")
        if on_gpu:
            torch.cuda.synchronize()
    table = backend.frame_to_arrow(frame)
    failed = len(table) - table["image_error"].null_count
    if failed:
        raise RuntimeError(
            f"{folder.name}: expected vectors of all {len(table)} images, {failed} have a reason"
        )
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    operators = [(each.key, each.count, getattr(each, own) / 1000) for each in profiler.key_averages()]
    height, width = data_config(model_name)["input_size"][1:]
    found: dict[str, Any] = {
        "images": len(table),
        "encoded_bytes": sum(len(image) for image in bare.encoded(folder, 0, 0, 1)),
        "pixel_bytes": len(table) * height * width * 3,
        "batch_pixel_bytes": min(batch_size, len(table)) * height * width * 3,
        "vector_bytes": len(table) * len(table["image_embedding"][0]) * 4,
        "operators": _top(operators),
    }
    if not on_gpu:
        return found
    with tempfile.TemporaryDirectory() as out:
        path = Path(out) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return found | {
        "kernels": kernels_of(events),
        "copies": copies_of(events),
        "streams": streams_of(events),
    }


def _top(found: Sequence[tuple[str, int, float]]) -> list[dict[str, Any]]:
    """Those of (name, calls, milliseconds) that took most of the time."""
    ordered = sorted((each for each in found if each[2] > 0), key=lambda each: -each[2])[:TOP]
    return [{"name": name[:80], "calls": calls, "ms": round(spent, 3)} for name, calls, spent in ordered]


def kernels_of(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The kernels of a trace (Chrome's format) that took most of the time: name, calls, milliseconds."""
    spent: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "kernel":
            spent[event["name"]].append(event["dur"] / 1000)
    return _top([(name, len(each), sum(each)) for name, each in spent.items()])


def copies_of(events: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """The copies of a trace by kind, such as ``HtoD (Pageable -> Device)``: ``count``, ``bytes``, ``largest``."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "gpu_memcpy":
            sizes[event["name"].removeprefix("Memcpy ").strip()].append(int(event["args"]["bytes"]))
    return {
        kind: {"count": len(each), "bytes": sum(each), "largest": max(each)} for kind, each in sizes.items()
    }


def streams_of(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How busy the device was in a trace.

    Returns
    -------
    dict
        ``device_busy``: part of the time, from the first kernel or copy to the last, in which there was one at work.
        ``model_busy``: the same of the stream with the most kernel time, the model's. ``gaps`` and ``gaps_ms``:
        number and sum of that stream's idle times above `GAP`.
    """
    everything: list[tuple[float, float]] = []
    streams: dict[Any, list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            everything.append((event["ts"], event["ts"] + event["dur"]))
            if event["cat"] == "kernel":
                streams[event["args"].get("stream")].append(everything[-1])
    if not streams:
        return {}
    model = max(streams.values(), key=lambda each: sum(end - start for start, end in each))
    gaps, model_busy = _union(model)
    return {
        "device_busy": round(_union(everything)[1], 4),
        "model_busy": round(model_busy, 4),
        "gaps": len(gaps),
        "gaps_ms": round(sum(gaps) / 1000, 3),
    }


def _union(spans: Sequence[tuple[float, float]]) -> tuple[list[float], float]:
    """Gaps above `GAP` between spans, and the part of the time from the first to the last that the spans cover."""
    ordered = sorted(spans)
    first = last = ordered[0][0]
    gaps, covered = [], 0.0
    for start, end in ordered:
        if start - last > GAP:
            gaps.append(start - last)
        covered += max(0.0, end - max(start, last))
        last = max(last, end)
    return gaps, covered / max(last - first, 1e-9)
