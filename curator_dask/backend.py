"""The one place where CPU and GPU part ways.

A process is either a CPU or a GPU process, decided once (`current`): by the environment variable
``CURATOR_DASK_DEVICE`` (``cpu`` or ``gpu``) when it is set, else by whether the NVIDIA driver shows a device.
Everything else asks the `Backend` for its frame library, torch device and DALI placement.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib.util
import itertools
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from curator_dask.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

DEVICE_VARIABLE = "CURATOR_DASK_DEVICE"
T = TypeVar("T")


@dataclass(frozen=True)
class Backend:
    """What a process computes with.

    Attributes
    ----------
    device
        ``"cpu"`` or ``"gpu"``.
    frames
        ``"pandas"`` or ``"cudf"``: the type of a partition.
    """

    device: Literal["cpu", "gpu"]
    frames: Literal["pandas", "cudf"]

    @property
    def torch_device(self) -> torch.device:
        """The device of models and pixels. dask-cuda makes a worker's own GPU device 0."""
        import torch

        return torch.device("cuda", 0) if self.device == "gpu" else torch.device("cpu")

    @property
    def dali_device_id(self) -> int | None:
        """``device_id`` of a DALI pipeline; None keeps it off the GPU."""
        return 0 if self.device == "gpu" else None

    @property
    def dali_decoder(self) -> str:
        """``device`` of DALI's image decoder: ``"mixed"`` (nvJPEG) or ``"cpu"``."""
        return "mixed" if self.device == "gpu" else "cpu"

    def from_arrow(self, table: pa.Table) -> Any:
        """A frame of this backend's type with the table's columns; of pandas' types they have `pandas_type`."""
        if self.frames == "cudf":
            import cudf

            from curator_dask.holding import held_table

            return cudf.DataFrame.from_arrow(held_table(table))
        return rows_of(table)

    def autocast_dtype(self, fine: bool = False) -> torch.dtype | None:
        """The reduced precision that is fast here, or None where there is none.

        bf16 on GPUs that have it, else fp16. On a CPU only where bf16 is native (AVX512-BF16 or AMX):
        emulated bf16 is 5 to 20 times slower than fp32.

        Parameters
        ----------
        fine
            Not bf16, which has 8 bits where fp16 has 11: fp16 on GPUs, none on a CPU.
        """
        import torch

        if self.device == "gpu":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if native and not fine else torch.float16
        return torch.bfloat16 if _cpu_has_bf16() and not fine else None

    def release_memory(self) -> None:
        """Give memory that torch, DALI and CuPy keep for later back to the device."""
        if self.device != "gpu":
            return
        import torch

        gc.collect()  # a user's model may be in a circle
        torch.cuda.empty_cache()
        if dali := sys.modules.get("nvidia.dali.backend"):
            dali.ReleaseUnusedMemory()
        if cupy := sys.modules.get("cupy"):
            cupy.get_default_memory_pool().free_all_blocks()

    def again_if_full(self, function: Callable[[], T]) -> T:
        """Call a function, and once more, with what torch keeps for later given back, where the device was full."""
        try:
            return function()
        except Exception as error:
            if not is_out_of_memory(error):
                raise  # else: the traceback holds what the function had made so far
        self.release_memory()
        return function()

    def lost(self) -> str | None:
        """Why nothing works on this process's GPU any more, or None.

        After an illegal access or a failed assertion each call of CUDA's ends with that same error, until the process
        does (CUDA's "sticky" errors). What is queued is waited for.
        """
        if self.device != "gpu":
            return None
        import torch

        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            return None if is_out_of_memory(error) else str(error).splitlines()[0]
        return None

    def side_stream(self) -> AbstractContextManager[Any]:
        """A context whose work on the GPU does not queue behind this process's other work, but goes before it.

        It may be reused.
        """
        if self.device != "gpu":
            return nullcontext()
        import torch

        return torch.cuda.stream(torch.cuda.Stream(priority=-1))

    def adopt(self, tensor: torch.Tensor) -> None:
        """Take over a finished tensor from a side stream: its memory is not reused under this one's work."""
        if self.device == "gpu":
            import torch

            tensor.record_stream(torch.cuda.current_stream())

    def mark(self) -> Callable[[], None]:
        """Mark what is queued on this thread's GPU stream so far.

        Returns
        -------
        Callable
            Called where another stream is current, it makes that stream's further work wait for the marked work.
        """
        if self.device != "gpu":
            return lambda: None
        import torch

        wait: Callable[[], None] = torch.cuda.current_stream().record_event().wait
        return wait

    @contextmanager
    def wait_for_outputs(self) -> Iterator[None]:
        """On leaving, all work queued on this thread's GPU stream is done."""
        yield
        if self.device == "gpu":
            import torch

            torch.cuda.current_stream().synchronize()


#: Words by which allocators tell that there is no more: DALI's, RMM's where torch takes its memory from it, torch's
#: own of the host, CUDA's, nvImageCodec's, and those of cuBLAS, cuSOLVER and cuDNN, which need room to work in.
_FULL = (
    *("allocation failed", "bad_alloc", "out of memory", "not enough memory", "can't allocate memory"),
    *("allocator failed", "allocator failure", "status_alloc_failed", "cublas_status_not_initialized"),
    *("unable to find an engine to execute", "unable to find a valid cudnn algorithm"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device, or the host, has no memory left, whichever allocator raised it.

    torch raises a type of its own for a GPU and a RuntimeError for the host, RMM a MemoryError, and DALI a
    RuntimeError, all of which may be had in one process.
    """
    import torch

    own = getattr(torch, "OutOfMemoryError", None) or torch.cuda.OutOfMemoryError  # its name before torch 2.5
    if isinstance(error, (MemoryError, own)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _FULL)


def _cpu_has_bf16() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def hardware(device: str) -> str | None:
    """What computes on this machine, as text: another may round otherwise, or have another reduced precision.

    None where that is not known.

    Parameters
    ----------
    device
        ``"cpu"``, or ``"gpu"``: all GPUs that this process may use.
    """
    if device == "gpu":
        return _gpu_names()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            lines = list(itertools.takewhile(str.strip, file))  # of the first core
    except OSError:
        lines = []
    kept = [line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))]
    return " ".join([platform.machine(), *kept]) if kept else None


def _gpu_names() -> str | None:
    driver = ctypes.CDLL("libcuda.so.1")
    version = ctypes.c_int(0)
    failed = driver.cuDriverGetVersion(ctypes.byref(version))
    names = [f"driver {version.value}"]
    for number in range(gpu_count()):
        device, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
        failed = failed or driver.cuDeviceGet(ctypes.byref(device), number)
        failed = failed or driver.cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode(errors="replace"))
    return None if failed else ", ".join(names)


@functools.cache
def gpu_count() -> int:
    """Number of NVIDIA GPUs that this process may use (respects ``CUDA_VISIBLE_DEVICES``)."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


@functools.cache
def current() -> Backend:
    """The backend of this process, decided once.

    Raises
    ------
    ConfigError
        ``CURATOR_DASK_DEVICE`` is neither ``cpu`` nor ``gpu``, or is ``gpu`` where no GPU can be seen.
    """
    wanted = os.environ.get(DEVICE_VARIABLE, "").lower()
    if wanted not in ("", "cpu", "gpu"):
        raise ConfigError(f"{DEVICE_VARIABLE}={wanted!r}: expected 'cpu' or 'gpu'")
    if wanted == "gpu" and not gpu_count():
        raise ConfigError(f"{DEVICE_VARIABLE}=gpu, but the NVIDIA driver shows no GPU: check nvidia-smi")
    device: Literal["cpu", "gpu"] = "gpu" if wanted != "cpu" and gpu_count() else "cpu"
    has_cudf = device == "gpu" and importlib.util.find_spec("cudf") is not None
    return Backend(device=device, frames="cudf" if has_cudf else "pandas")


def array_of(tensor: torch.Tensor) -> Any:
    """A tensor's memory as an array of its device's library: NumPy, or CuPy on a GPU. Nothing is copied.

    Raises
    ------
    ConfigError
        The tensor is on a GPU and CuPy is not installed.
    """
    if tensor.device.type == "cpu":
        return tensor.numpy()
    try:
        import cupy
    except ImportError as error:
        raise ConfigError(
            f"images on a GPU are CuPy arrays, and CuPy cannot be imported here ({error}): install "
            f"curator-dask[cuda13] or [cuda12], or set {DEVICE_VARIABLE}=cpu"
        ) from error
    return cupy.from_dlpack(tensor)


def tensor_of(array: Any) -> torch.Tensor:
    """The memory of a NumPy or CuPy array as a tensor on its device, to be read only.

    Copied only where it is not in C order, which torch cannot take with negative strides.
    """
    import numpy as np
    import torch

    if not array.flags.c_contiguous:
        array = array.copy()
    if not isinstance(array, np.ndarray):
        return torch.from_dlpack(array)
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Writable(array)))


class _Writable:
    """A read-only NumPy array's memory, said to be writable: torch warns of what is not, and knows no const."""

    def __init__(self, array: Any):
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}
        self._array = array  # kept alive by what NumPy makes of this


def rows_of(table: pa.Table) -> Any:
    """A table as a pandas frame, whatever the device: for rows that steps add to and that go to a file again.

    Nobody sees such a frame, and steps compute on the device by themselves: on a GPU it would be all ways and no work,
    and of types that cuDF has.
    """
    return table.to_pandas(types_mapper=pandas_type)


def frame_to_arrow(frame: Any) -> pa.Table:
    """The frame's columns, without its index, as an Arrow table, whichever library made it.

    Of cuDF's columns it has the types as which they are held (`curator_dask.holding`).
    """
    import pyarrow as pa

    if on_gpu(frame):
        from curator_dask.holding import with_nested_types

        return with_nested_types(frame.to_arrow(preserve_index=False), [*map(_arrow_kind, frame.dtypes)])
    return pa.Table.from_pandas(frame, preserve_index=False)


def series_to_arrow(series: Any) -> pa.Array | pa.ChunkedArray:
    """A series, or an array, as an Arrow array of the type that its column has in `frame_to_arrow`."""
    import pyarrow as pa

    if on_gpu(series):
        from curator_dask.holding import with_nested_type

        return with_nested_type(series.to_arrow(), _arrow_kind(series.dtype))
    return pa.Array.from_pandas(series)


def _arrow_kind(kind: Any) -> pa.DataType | None:
    """What a type of cuDF's is to Arrow, where it says so: those of lists and structs do."""
    return kind.to_arrow() if hasattr(kind, "to_arrow") else getattr(kind, "pyarrow_dtype", None)


def on_gpu(frame: Any) -> bool:
    """Whether a frame or series is cuDF's."""
    return hasattr(frame, "to_arrow")


def concat(frames: Sequence[Any]) -> Any:
    """The rows of frames of one library with the same columns, one after the other, numbered anew."""
    if on_gpu(frames[0]):
        import cudf as library
    else:
        import pandas as library
    return library.concat(frames, ignore_index=True)


def series_like(frame: Any, array: pa.Array) -> Any:
    """An Arrow array as a Series of the frame's library, with the frame's index."""
    series = series_of(frame, array)
    series.index = frame.index
    return series


def series_of(frame: Any, array: pa.Array) -> Any:
    """An Arrow array of any length as a Series of the frame's library."""
    if on_gpu(frame):
        import cudf

        from curator_dask.holding import hold

        return cudf.Series.from_arrow(hold(array))
    import pandas as pd

    return pd.Series(pandas_type(array.type).__from_arrow__(array))


def pandas_type(kind: pa.DataType) -> Any:
    """The type of a column in pandas: Arrow's own, but text is as Dask makes it.

    pandas joins text of two types, of which Arrow's would be one, to columns of Python objects, whose type Dask's
    ``to_parquet`` cannot know.
    """
    import pandas as pd
    import pyarrow as pa

    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return pd.StringDtype("pyarrow") if is_text else pd.ArrowDtype(kind)
