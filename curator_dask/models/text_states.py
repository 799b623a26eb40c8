"""States of captions by the text encoder of a diffusion model: what it sees of a caption, a vector a token.

A `TextStatesSpec` (small, frozen, hashable) travels; its `build` makes the `TextStatesEncoder` on the worker.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curator_dask import backend
from curator_dask.errors import ConfigError, WeightsError
from curator_dask.fingerprint import fingerprint
from curator_dask.models.hub import CONFIG, find_folder, read_json
from curator_dask.models.room import Room
from curator_dask.models.tokens import Tokens, tokenizer_digest
from curator_dask.models.towers import load_model
from curator_dask.models.weights import first_line

#: Of the numbers that are kept; NumPy has no bfloat16.
STORED = ("float16", "float32")
#: Arithmetic of the model.
ARITHMETIC = ("float32", "bfloat16", "float16")
#: Classes of transformers' by ``model_type``: encoders, and decoders whose states are taken (Sana's Gemma 2, Qwen's).
CLASSES = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModelWithProjection",
    "clip_text_model": "CLIPTextModel",
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "llama"), "AutoModel"),
}
_POOLED = {"CLIPTextModelWithProjection": "text_embeds", "CLIPTextModel": "pooler_output"}
#: Of a configuration, what changes no state.
_NO_MATTER = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "use_cache")
#: Tensors that stand in the weights again under another name.
_TIED = ("encoder.embed_tokens.weight", "embed_tokens.weight", "position_ids")


@dataclass(frozen=True)
class TextStatesSpec:
    """Everything that decides the states of a caption.

    Attributes
    ----------
    model_name, model_dir
        See `curator_dask.models.hub.find_folder`. The tokenizer is in the same folder, or as in diffusers' pipelines
        beside it: of ``text_encoder_2`` in ``tokenizer_2``.
    max_length
        Tokens of a caption, at most; the rest is cut off. None: as many as the model has positions for.
    layer
        -1: the last states, behind the last norm; -2: those that go into the last layer, as SDXL takes them.
    padded
        All `max_length` tokens are kept and attended to, as SD, SDXL, SD3 and FLUX.1 take them. False: those of the
        caption alone, as those of PixArt and Sana which a mask leaves.
    pooled
        The vector of the whole caption is kept, too: a CLIP's.
    stored
        One of `STORED`.
    dtype
        One of `ARITHMETIC`.
    weights
        SHA-256 of the weights that it must be; empty: whatever they are.

    Raises
    ------
    ConfigError
        A value is none that it can have.
    """

    model_name: str
    model_dir: str | None = None
    max_length: int | None = None
    layer: int = -1
    padded: bool = False
    pooled: bool = False
    stored: str = "float16"
    dtype: str = "float32"
    weights: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.model_name, str) or not self.model_name:
            raise ConfigError(
                f"text_states: model={self.model_name!r}: expected the text of a folder, or of a repository (org/repo)"
            )
        for name, known in (("stored", STORED), ("dtype", ARITHMETIC)):
            if (value := getattr(self, name)) not in known:
                raise ConfigError(
                    f"text_states: {name}={value!r}: expected one of {', '.join(map(repr, known))}"
                )
        for name in ("padded", "pooled"):
            if not isinstance(value := getattr(self, name), bool):
                raise ConfigError(f"text_states: {name}={value!r}: expected True or False")
        for name, least, most in (("max_length", 2, 1 << 20), ("layer", -1000, -1)):
            value = getattr(self, name)
            if name == "max_length" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ConfigError(
                    f"text_states: {name}={value!r}: expected a whole number from {least} to {most}"
                )

    def __str__(self) -> str:
        return self.model_name

    def known(self) -> tuple[TextStatesSpec, dict[str, Any]]:
        """The same with the digest of its weights, and what the states are; files are fetched, no model is loaded.

        Returns
        -------
        The spec; and JSON-able: ``model`` (class and digest of its configuration), ``weights`` (SHA-256),
        ``tokenizer`` (digest of its files), ``max_length``, ``layer``, ``padded``, ``pooled``, ``dim``, ``stored``,
        ``dtype``.

        Raises
        ------
        ConfigError
            It is no text encoder that is known, or takes no such number of tokens, or has nothing pooled.
        WeightsError
            The weights cannot be had.
        """
        folder = find_folder(self.model_name, self.model_dir, self._check)
        config = read_json(folder / CONFIG)
        kind = self._kind_of(config)
        own: Mapping[str, Any] = config.get("text_config") or config if "clip" in kind.lower() else config
        positions = own.get("max_position_embeddings", 77 if "CLIP" in kind else None)
        # A T5 has relative positions, and a decoder thousands, of which no diffusion model takes all.
        limit = self.max_length or (positions if "CLIP" in kind else None)
        if limit is None:
            raise ConfigError(
                f"text_states: {self.model_name} takes captions of any length: give max_length,"
                " as the diffusion model has it: 120 for PixArt-alpha, 300 for PixArt-Sigma and Sana, 256 for SD3, 512"
                " for FLUX.1"
            )
        if isinstance(positions, int) and limit > positions:
            raise ConfigError(
                f"text_states: max_length={limit}: {self.model_name} has {positions} positions, and takes no more"
            )
        if self.pooled and kind not in _POOLED:
            raise ConfigError(
                f"text_states: pooled: {self.model_name} is a {kind}, which has no vector of a whole caption, as a"
                " CLIP has: leave it out"
            )
        digest = _weights_digest(folder)
        if self.weights not in ("", digest):
            raise WeightsError(
                f"{folder}: expected weights with SHA-256 {self.weights}, which the client has, found {digest}. Give"
                " every node the same files"
            )
        decides = {name: value for name, value in config.items() if name not in _NO_MATTER}
        info = {
            "model": f"{config['model_type'] if kind == 'AutoModel' else kind} [{fingerprint(decides)[:12]}]",
            "weights": digest,
            "tokenizer": tokenizer_digest(_tokenizer_of(folder)),
            "max_length": limit,
            **{name: getattr(self, name) for name in ("layer", "padded", "pooled")},
            "dim": own.get("d_model") or own.get("hidden_size"),
            **{name: getattr(self, name) for name in ("stored", "dtype")},
        }
        return replace(self, weights=digest), info

    def _check(self, config: Mapping[str, Any]) -> None:
        self._kind_of(config)

    def _kind_of(self, config: Mapping[str, Any]) -> str:
        """The class; raises ConfigError where it is none that is known."""
        found = config.get("model_type")
        if found not in CLASSES:
            raise ConfigError(
                f"{self.model_name}: its {CONFIG} has the model_type {found!r}; expected one of {', '.join(CLASSES)},"
                " which text encoders of diffusion models have. Of a pipeline of diffusers' give the folder of one:"
                " PIPELINE/text_encoder"
            )
        said = config.get("architectures") or ()
        if found == "clip_text_model" and "CLIPTextModelWithProjection" in said:
            return "CLIPTextModelWithProjection"
        return CLASSES[found]

    def build(self) -> TextStatesEncoder:
        """Make it on this process's device.

        Raises
        ------
        ConfigError
            It is no text encoder that is known.
        WeightsError
            The weights cannot be had, do not fit the configuration, or are others than `weights` says.
        """
        import torch
        import transformers

        _, info = self.known()
        folder = find_folder(self.model_name, self.model_dir)
        kind = getattr(transformers, self._kind_of(read_json(folder / CONFIG)))
        model, said = load_model(kind, folder, dtype=getattr(torch, self.dtype))
        missing = sorted(each for each in said["missing_keys"] if not each.endswith(_TIED))
        if missing:
            raise WeightsError(
                f"{folder}: the weights lack {len(missing)} tensors of {kind.__name__}: {', '.join(missing[:3])}. They"
                " must be those of the config.json beside them"
            )
        tokens = Tokens(_tokenizer_of(folder), int(info["max_length"]))
        return TextStatesEncoder(self, model.to(backend.current().torch_device).eval(), tokens, info)


class States(NamedTuple):
    """What a model sees of a caption.

    Attributes
    ----------
    tokens
        (tokens, dim), float16 or float32.
    pooled
        (dim,) of the same numbers; None where it is not asked for.
    was_cut
        The caption has more tokens.
    """

    tokens: np.ndarray
    pooled: np.ndarray | None
    was_cut: bool


class TextStatesEncoder:
    """A text encoder on this process's device; what is done with it is done by one thread at a time.

    Parameters
    ----------
    spec
        What is wanted.
    model
        As transformers has it, on the device.
    tokens
        Its tokenizer.
    info
        See `TextStatesSpec.known`.

    Raises
    ------
    ConfigError
        The model has no such layer, or cannot make states of a text.
    """

    def __init__(self, spec: TextStatesSpec, model: Any, tokens: Tokens, info: Mapping[str, Any]) -> None:
        self.info, self._spec, self._model, self._tokens = info, spec, model, tokens
        self._lock = threading.Lock()
        self._room = Room(spec.model_name, "{} captions at once")
        self._backend = backend.current()
        try:
            self(["a"], 1)
        except Exception as error:
            if backend.is_out_of_memory(error) or self._backend.lost() is not None:
                raise
            raise ConfigError(
                f"{spec.model_name}: {type(model).__name__} cannot make states of a text, of layer {spec.layer}:"
                f" {type(error).__name__}: {first_line(error)}"
            ) from error

    def __call__(self, texts: Sequence[str], batch_size: int) -> list[States | str]:
        """Make states of texts; those of like length share a pass.

        Parameters
        ----------
        texts
            They may be empty.
        batch_size
            Texts a pass, at most.

        Returns
        -------
        In the order of the texts; or the reason why there are none.
        """
        pieces = self._tokens.pieces(texts, True)
        order = np.argsort([len(each[0]) for each in pieces], kind="stable").tolist()
        found: list[States | str] = [""] * len(texts)
        start = 0
        with self._lock:
            while start < len(order):
                batch = order[start : start + self._room.of(batch_size)]
                try:
                    made = self._together([pieces[at][0] for at in batch])
                except Exception as error:
                    if self._backend.lost() is not None or not self._room.may_be_made(error, len(batch)):
                        raise
                else:
                    for at, (states, pooled) in zip(batch, made, strict=True):
                        found[at] = self._kept(states, pooled, len(pieces[at]) > 1)
                    start += len(batch)
                    continue
                self._room.make(len(batch))
        return found

    def close(self) -> None:
        """Let the model and its device memory go."""
        self._model = None
        self._backend.release_memory()

    def _together(self, pieces: Sequence[Sequence[int]]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Of one pass: float32 (tokens, dim), and (dim,) pooled, of each."""
        import torch

        padded, spec = self._spec.padded, self._spec
        width = self._tokens.limit if padded else max(map(len, pieces))
        ids = np.full((len(pieces), width), self._tokens.pad, np.int64)
        mask = np.full((len(pieces), width), int(padded), np.int64)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece)] = piece
            mask[row, : len(piece)] = 1
        device = self._backend.torch_device
        with torch.inference_mode():
            made = self._model(
                input_ids=torch.from_numpy(ids).to(device),
                # A CLIP of SD's and SDXL's, and a T5 of SD3's and FLUX.1's, get none: all tokens are attended to.
                attention_mask=None if padded else torch.from_numpy(mask).to(device),
                output_hidden_states=spec.layer != -1,
            )
            states = made.last_hidden_state if spec.layer == -1 else made.hidden_states[spec.layer]
            rows = states.float().cpu().numpy()
            pooled: list[Any] = [None] * len(pieces)
            if spec.pooled:
                pooled = [*getattr(made, _POOLED[type(self._model).__name__]).float().cpu().numpy()]
        counts = [width if padded else len(piece) for piece in pieces]
        return [(row[:count], each) for row, count, each in zip(rows, counts, pooled, strict=True)]

    def _kept(self, states: np.ndarray, pooled: np.ndarray | None, was_cut: bool) -> States | str:
        """As they are kept; or why they cannot be."""
        both = [states] if pooled is None else [states, pooled]
        if not all(np.isfinite(each).all() for each in both):
            half = self._spec.dtype == "float16"
            cure = "; dtype='float32' or 'bfloat16' have a larger range" * half
            return f"not finite: the model ({self._spec.dtype}) gave NaN or infinity{cure}"
        with np.errstate(over="ignore"):
            kept = [each.astype(self._spec.stored) for each in both]
        if not all(np.isfinite(each).all() for each in kept):
            most = max(np.abs(each).max() for each in both)
            return (
                f"not finite: a state has the value {most:.6g}, too large for {self._spec.stored}: stored='float32'"
                " holds it"
            )
        return States(kept[0], None if pooled is None else kept[1], was_cut)


def _tokenizer_of(folder: Path) -> Path:
    """Where the tokenizer is: of a pipeline's ``text_encoder_2`` in ``tokenizer_2`` beside it."""
    name = folder.name.replace("text_encoder", "tokenizer")
    beside = folder.with_name(name)
    return beside if name != folder.name and beside.is_dir() else folder


def _weights_digest(folder: Path) -> str:
    """SHA-256 of all files of weights, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
