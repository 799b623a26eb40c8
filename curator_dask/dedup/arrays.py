"""Arrays of files that are mapped into memory."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

#: NumPy has Python parse the head of a file, which in several threads at a time CPython 3.11.7 once ended with
#: "AST constructor recursion depth mismatch".
_HEADS = threading.Lock()


def load(path: str) -> np.ndarray:
    """An array that `numpy.save` has written, mapped into memory."""
    with _HEADS:
        array: np.ndarray = np.load(path, mmap_mode="r")
    return array


def mapped(file: Any) -> np.memmap[Any, Any]:
    """The same of an open file, of which no more than the head need be there."""
    form = np.lib.format
    with _HEADS:
        version = form.read_magic(file)
        read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        shape, fortran, kind = read(file)
    return np.memmap(file, kind, "r", file.tell(), shape, "F" if fortran else "C")


def take(vectors: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Some rows of vectors that are mapped into memory, in memory."""
    first, count = int(places[0]) if len(places) else 0, len(places)
    # Most often they are side by side, which is quicker to copy.
    if count and int(places[-1]) - first == count - 1 and (np.diff(places) == 1).all():
        return np.array(vectors[first : first + count])
    return np.asarray(vectors[places])
