"""Models that write a text about an image: what transformers' AutoModelForImageTextToText loads from safetensors.

A `CaptionSpec` (small, frozen, hashable) travels; its `build` makes the `Captioner` on the worker.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator_dask import backend
from curator_dask.errors import ConfigError, CuratorError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.record import TEXT
from curator_dask.models.caption_inputs import FILES, Inputs, check_config
from curator_dask.models.captioner import Captioner
from curator_dask.models.hub import CONFIG, find_beside, find_folder, read_json
from curator_dask.models.sources import State, model_state
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


@dataclass(frozen=True)
class CaptionSpec:
    """Everything that decides what is written about an image.

    Attributes
    ----------
    model_name
        A folder with ``config.json``, ``model.safetensors`` and the files of processor and tokenizer as transformers
        writes them, or a repository of the hub: ``"org/repo"``, ``"org/repo@revision"``.
    model_dir
        See `curator_dask.models.hub.find_folder`.
    prompt
        What the model is asked, or how the text begins; None: nothing.
    max_new_tokens
        Tokens of a text, at most.
    num_beams
        1: the likeliest token each time; more: beam search.
    dtype
        Of `curator_dask.models.precision.DTYPES`.
    """

    model_name: str
    model_dir: str | None = None
    prompt: str | None = None
    max_new_tokens: int = 64
    num_beams: int = 1
    dtype: str = "auto"

    def __str__(self) -> str:
        return self.model_name

    @property
    def source_state(self) -> State | None:
        """Of the files of its folder; see `curator_dask.cache.SpecCache.refresh`."""
        return model_state(self.model_name, self.model_dir)

    def fetch(self) -> Path:
        """The folder with weights and processor; fetched if it is nowhere, without loading anything.

        Raises
        ------
        ConfigError
            The model is none of transformers' that write texts about images.
        WeightsError
            The weights cannot be had.
        """
        folder = find_folder(
            self.model_name, self.model_dir, lambda config: check_config(config, self.model_name)
        )
        find_beside(self.model_name, self.model_dir, folder, FILES)
        return folder

    def build(self) -> Captioner:
        """Make it on this process's device.

        Raises
        ------
        ConfigError
            It is no such model, or cannot be asked so.
        WeightsError
            The weights cannot be had, or do not fit the configuration.
        """
        import torch
        import transformers

        folder = self.fetch()
        stated = read_json(folder / CONFIG)
        check_config(stated, str(folder))
        if (folder / FILES[0]).is_file():
            read_json(folder / FILES[0])  # one that is damaged transformers takes as if there were none
        here = backend.current()
        dtype: Any = self.dtype if self.dtype != "auto" or here.device == "gpu" else "float32"
        model = load_whole(
            transformers.AutoModelForImageTextToText,
            folder,
            "write texts about images",
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=False,
        )
        inputs = Inputs(folder, model.config, self.prompt)
        decides = {name: value for name, value in stated.items() if not _NO_MATTER.fullmatch(name)}
        options = json.loads(model.generation_config.to_json_string())
        how = {name: value for name, value in options.items() if not _NOT_LOOKED_AT.fullmatch(name)}
        _unset(model)
        search = "greedy" if self.num_beams == 1 else f"{self.num_beams} beams"
        info = {
            "model": f"{type(model).__name__} [{fingerprint(decides)[:12]}]",
            "source": self.model_name,
            "weights": state_digest(model),
            "processor": inputs.name,
            "prompt": self.prompt,
            "generation": f"{search}, at most {self.max_new_tokens} tokens [{fingerprint(how)[:12]}]",
            "output": TEXT,
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        }
        try:
            return Captioner(
                model.to(here.torch_device).eval(), inputs, info, self.max_new_tokens, self.num_beams
            )
        except Exception as error:
            if backend.is_out_of_memory(error):
                raise
            said = (
                str(error)
                if isinstance(error, CuratorError)
                else f"{type(error).__name__}: {first_line(error)}"
            )
            raise ConfigError(
                f"{folder}: {type(model).__name__} cannot write about a picture: {said}"
            ) from error


def _unset(model: Any) -> None:
    """Have a model, and the parts of it that generate, take and warn of nothing that is not looked at.

    Nor is it compiled while it generates. With a cache of one size, as Gemma's configurations have it, transformers
    does so on a GPU by itself: for each shape of a batch anew, and with CUDA graphs, which fail in another thread than
    the one that made them.
    """
    for part in model.modules():
        config = getattr(part, "generation_config", None)
        if config is None:
            continue
        for name in _UNSET:
            setattr(config, name, None)
        config.disable_compile = True
