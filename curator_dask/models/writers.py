"""How models that write are found and loaded: what specs of those that caption share with those that answer."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from curator_dask import backend
from curator_dask.errors import ConfigError, CuratorError
from curator_dask.fingerprint import fingerprint
from curator_dask.models.caption_inputs import FILES
from curator_dask.models.hub import CONFIG, find_beside, find_folder, read_json
from curator_dask.models.sources import OfTransformers
from curator_dask.models.towers import load_whole
from curator_dask.models.weights import first_line, state_digest

#: Of a configuration, what changes no output.
_NO_MATTER = re.compile(r"_.*|id2label|label2id|architectures|transformers_version|(torch_)?dtype")
#: Of a generation configuration, what is for sampling, a length, which is told, a time, by which the machine would
#: decide what is written, and what hides NaN.
_UNSET = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "max_length"),
    *("max_time", "remove_invalid_values"),
)
_NOT_LOOKED_AT = re.compile(
    r"_.*|transformers_version|do_sample|max_new_tokens|num_beams|num_return_sequences|use_cache|output_.*"
    rf"|return_dict_in_generate|{'|'.join(_UNSET)}"
)

Made = TypeVar("Made")


@dataclass(frozen=True)
class Writer:
    """A model that is loaded, on the CPU still.

    Attributes
    ----------
    folder
        Of its files.
    model
        As transformers has it.
    stated
        Its configuration, as the file has it.
    """

    folder: Path
    model: Any
    stated: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its class, and twelve digits of what in its configuration decides an output."""
        decides = {name: value for name, value in self.stated.items() if not _NO_MATTER.fullmatch(name)}
        return f"{type(self.model).__name__} [{fingerprint(decides)[:12]}]"

    def info(self, source: str, processor: str, **more: Any) -> dict[str, Any]:
        """What makes its outputs, JSON-able."""
        return {
            "model": self.name,
            "source": source,
            "weights": state_digest(self.model),
            "processor": processor,
            **more,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
        }

    def generation(self) -> str:
        """Twelve digits of what decides a text that it writes, besides what is given with each call.

        The model, and the parts of it that generate, then take and warn of nothing that is not looked at.

        Nor is it compiled while it generates. With a cache of one size, as Gemma's configurations have it, transformers
        does so on a GPU by itself: for each shape of a batch anew, and with CUDA graphs, which fail in another thread
        than the one that made them.
        """
        options = json.loads(self.model.generation_config.to_json_string())
        how = {name: value for name, value in options.items() if not _NOT_LOOKED_AT.fullmatch(name)}
        for part in self.model.modules():
            config = getattr(part, "generation_config", None)
            if config is None:
                continue
            for name in _UNSET:
                setattr(config, name, None)
            config.disable_compile = True
        return fingerprint(how)[:12]

    def made(self, make: Callable[[Any], Made], cannot: str) -> Made:
        """What is made of the model on this process's device.

        Raises
        ------
        ConfigError
            It could not be made, but for a lack of memory.
        """
        try:
            return make(self.model.to(backend.current().torch_device).eval())
        except Exception as error:
            if backend.is_out_of_memory(error):
                raise
            said = (
                str(error)
                if isinstance(error, CuratorError)
                else f"{type(error).__name__}: {first_line(error)}"
            )
            raise ConfigError(f"{self.folder}: {type(self.model).__name__} {cannot}: {said}") from error


class WriterSpec(OfTransformers, ABC):
    """Base of the specs of such models: frozen dataclasses with these fields.

    Attributes
    ----------
    model_name, model_dir
        See `OfTransformers`; a folder has ``config.json``, ``model.safetensors`` and the files of processor and
        tokenizer as transformers writes them.
    dtype
        Of `curator_dask.models.precision.DTYPES`.
    """

    dtype: str

    @staticmethod
    @abstractmethod
    def check(config: Mapping[str, Any], name: str) -> None:
        """Raise ConfigError where a ``config.json`` is of no such model."""

    def fetch(self) -> Path:
        """The folder with weights and processor; fetched if it is nowhere, without loading anything.

        Raises
        ------
        ConfigError
            The model is none of these.
        WeightsError
            The weights cannot be had.
        """
        folder = find_folder(
            self.model_name, self.model_dir, lambda config: self.check(config, self.model_name)
        )
        find_beside(self.model_name, self.model_dir, folder, FILES)
        return folder

    def load(self, kind_of: Callable[[Mapping[str, Any]], Any], trained_to: str) -> Writer:
        """Load the model.

        Parameters
        ----------
        kind_of
            The class of transformers' that loads it, by its configuration.
        trained_to
            Do what, for messages.

        Raises
        ------
        ConfigError
            It is no such model.
        WeightsError
            The weights cannot be had, or do not fit the configuration.
        """
        import torch

        folder = self.fetch()
        stated = read_json(folder / CONFIG)
        self.check(stated, str(folder))
        if (folder / FILES[0]).is_file():
            read_json(folder / FILES[0])  # one that is damaged transformers takes as if there were none
        here = backend.current()
        dtype: Any = self.dtype if self.dtype != "auto" or here.device == "gpu" else "float32"
        model = load_whole(
            kind_of(stated),
            folder,
            trained_to,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=False,
        )
        return Writer(folder, model, stated)
