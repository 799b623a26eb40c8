"""Text encoders: a text model on its device, with its tokenizer and all that turns captions into vectors.

A `TextSpec` (small, frozen, hashable) travels; its `build` makes the `TextEncoder` on the worker.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from curator_dask import backend
from curator_dask.frames.columns import unit
from curator_dask.models.encoders import EncoderInfo
from curator_dask.models.heads import digest_of
from curator_dask.models.hub import names_folder
from curator_dask.models.room import Room
from curator_dask.models.sources import OfTransformers
from curator_dask.models.tokens import Tokens
from curator_dask.models.weights import state_digest

if TYPE_CHECKING:
    import torch

#: What becomes of a text that is longer than the model takes.
LONG_TEXT = ("truncate", "mean", "max")

#: Texts that are tokenized together.
_BLOCK = 1024


class Embedded(NamedTuple):
    """Vectors of texts.

    Attributes
    ----------
    vectors
        float32 (n, dim).
    long
        bool (n,): the text has more tokens than the model takes.
    """

    vectors: np.ndarray
    long: np.ndarray


@dataclass(frozen=True)
class TextSpec(OfTransformers, ABC):
    """What every text encoder is told.

    Attributes
    ----------
    model_name
        A folder, or a repository of the hub: ``"org/repo"``, ``"org/repo@revision"``.
    model_dir
        See `curator_dask.models.hub.find_folder`.
    normalize
        Divide each vector by its L2 norm.
    long_text
        One of `LONG_TEXT`.
    """

    model_name: str
    model_dir: str | None = None
    normalize: bool = field(default=True, kw_only=True)
    long_text: str = field(default="truncate", kw_only=True)

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the files of a folder, by their path in it; none of a repository, which its name identifies."""
        if not names_folder(self.model_name):
            return {}
        folder = Path(self.model_name)
        kinds = (".json", ".safetensors", ".txt", ".model")
        files = sorted(path for path in folder.rglob("*") if path.suffix in kinds and path.is_file())
        return {path.relative_to(folder).as_posix(): digest_of(path) for path in files}

    @abstractmethod
    def build(self) -> TextEncoder:
        """Make the encoder on this process's device."""


class TextEncoder:
    """A text model in eval mode on this process's device, in float32.

    Parameters
    ----------
    model
        Takes token numbers (n, tokens) and their mask (n, tokens), gives (n, dim).
    tokens
        Its tokenizer.
    name, source, output
        Recorded, as in `EncoderInfo`.
    text
        Further settings that decide a vector; recorded.
    normalize, long_text
        See `TextSpec`.
    pads_to_limit
        Every text has as many tokens as the model takes: it was trained so. Else texts of a batch are as long as the
        longest of them.
    before
        What each text begins with.
    images
        What makes vectors of images in the same space: ``model``, ``weights`` and ``output``; None: nothing is known.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokens: Tokens,
        *,
        name: str,
        source: str,
        output: str,
        text: Mapping[str, Any],
        normalize: bool,
        long_text: str,
        pads_to_limit: bool,
        before: str = "",
        images: Mapping[str, Any] | None = None,
    ) -> None:
        self.backend = backend.current()
        self._tokens, self._before, self._pads_to_limit = tokens, before, pads_to_limit
        self._normalize, self._long_text = normalize, long_text
        weights = state_digest(model)
        self.model: Callable[..., torch.Tensor] | None = model.eval().to(self.backend.torch_device)
        self._lock = threading.Lock()  # one forward pass at a time, also with several tasks a worker
        self._room = Room(source, "{} texts at once")
        dim = self._forward(tokens.pieces(["a"], False)[0]).shape[1]
        self.info = EncoderInfo(
            model=name,
            source=source,
            weights=weights,
            transform={**text, "tokens": tokens.limit, "long_text": long_text},
            output=output,
            dim=int(dim),
            dtype="float32",
            normalized=normalize,
            images=None if images is None else dict(images),
        )

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.info.dim

    def __call__(self, texts: Sequence[str], batch_size: int) -> Embedded:
        """Embed texts; those of like length share a batch.

        Parameters
        ----------
        texts
            None of them empty.
        batch_size
            Pieces of text a forward pass, at most. When the device runs out of memory the batch is halved, and stays
            halved for what comes after.
        """
        blocks = [
            self._embed(texts[start : start + _BLOCK], batch_size) for start in range(0, len(texts), _BLOCK)
        ]
        if not blocks:
            return Embedded(np.zeros((0, self.dim), np.float32), np.zeros(0, bool))
        return Embedded(*(np.concatenate(each) for each in zip(*blocks, strict=True)))

    @property
    def not_finite(self) -> str:
        """The reason of a text whose vector holds NaN or infinity."""
        return f"not finite: the model ({self.info.dtype}) gave NaN or infinity"

    def close(self) -> None:
        """Let the model and its device memory go."""
        self.model = None
        self.backend.release_memory()

    def _embed(self, texts: Sequence[str], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        whole = [self._before + text for text in texts]
        pieces = self._tokens.pieces(whole, True)
        counts = np.array([len(each) for each in pieces])
        long = counts > 1
        if self._long_text == "truncate":
            pieces = [each[:1] for each in pieces]
            counts = np.ones(len(pieces), int)
        flat = [piece for each in pieces for piece in each]
        order = np.argsort([len(piece) for piece in flat], kind="stable")
        vectors = np.zeros((len(flat), self.dim), np.float32)
        with self._lock:
            start = 0
            while start < len(flat):
                batch = order[start : start + self._room.of(batch_size)]
                try:
                    vectors[batch] = self._forward([flat[at] for at in batch]).cpu().numpy()
                except Exception as error:
                    if not self._room.may_be_made(error, len(batch)):
                        raise
                else:
                    start += len(batch)
                    continue
                self._room.make(len(batch))
        if len(flat) > len(texts):
            pool = np.maximum if self._long_text == "max" else np.add
            vectors = pool.reduceat(vectors, np.cumsum(counts) - counts, axis=0)
            vectors = unit(vectors) if self._normalize else vectors / _divisors(self._long_text, counts)
        return vectors, long

    def _forward(self, pieces: Sequence[Sequence[int]]) -> torch.Tensor:
        """One pass: float32 (n, dim) on the device."""
        import torch

        assert self.model is not None, "the encoder was closed"
        width = self._tokens.limit if self._pads_to_limit else max(map(len, pieces))
        ids = np.full((len(pieces), width), self._tokens.pad, np.int64)
        mask = np.zeros((len(pieces), width), np.int64)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece)] = piece
            mask[row, : len(piece)] = 1
        device = self.backend.torch_device
        with torch.inference_mode():
            vectors = self.model(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)).float()
            return torch.nn.functional.normalize(vectors, dim=-1) if self._normalize else vectors


def _divisors(long_text: str, counts: np.ndarray) -> np.ndarray:
    return (np.ones_like(counts) if long_text == "max" else counts)[:, None].astype(np.float32)
