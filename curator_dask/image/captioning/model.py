"""`CaptionModel`: a model of transformers' that writes about images, run over a dataset, and its texts as a column."""

from __future__ import annotations

import json
import os
from typing import Unpack

from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.image.captioning.step import CaptionImages
from curator_dask.image.classifiers.whole import ReadingOptions, TransformersModel
from curator_dask.models.captioning import CaptionSpec
from curator_dask.storage import Options

CAPTION_COLUMN = "generated_caption"


class CaptionModel(TransformersModel):
    """Adds what a model writes about each image as a column, in the pass that embeds it, or by itself.

    Parameters
    ----------
    model_name
        One of transformers' models that write texts about images (its ``AutoModelForImageTextToText``): a repository
        of the hub (``"org/repo"``, ``"org/repo@revision"``), or a folder with ``config.json``, ``model.safetensors``
        and the files of processor and tokenizer, as ``save_pretrained`` writes them.
    prompt
        What the model is asked, where it has a chat template (``"Describe this image in one sentence."``), else what
        goes in with the image: of BLIP and GIT how the caption begins. None: nothing, which BLIP, GIT and
        vision-encoder-decoder models such as ViT-GPT2 allow.
    column
        Of the texts; null also where the model writes nothing, which is no failure. A second column, its name with
        ``_cut`` behind, says which had not come to their end at `max_new_tokens`; it is null where an image failed.
    max_new_tokens
        Tokens of a text, at most.
    num_beams
        1: greedy, the likeliest token each time. More: beam search. Nothing is drawn by chance.
    model_dir
        As for `ClipImageEmbedder`.
    dtype
        Arithmetic: ``"auto"`` is float32 on a CPU, and on a GPU what the checkpoint is in. Else ``"float32"``,
        ``"bfloat16"`` or ``"float16"``.
    **options
        ``batch_size`` (16), ``num_threads_per_worker``, ``use_index_files``, ``decoder``, ``max_pixels``,
        ``on_error``, ``image_member``, ``gray16`` and ``orientation`` of `ImageEmbedder`; where an embedder's are the
        same, it shares its images.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    can = "write texts about images"
    named = "the captions another (column='recaption', --column recaption)"

    def __init__(
        self,
        model_name: str | os.PathLike[str],
        *,
        prompt: str | None = None,
        column: str = CAPTION_COLUMN,
        max_new_tokens: int = 64,
        num_beams: int = 1,
        model_dir: str | os.PathLike[str] | None = None,
        dtype: str = "auto",
        **options: Unpack[ReadingOptions],
    ) -> None:
        check_counts(max_new_tokens=max_new_tokens, num_beams=num_beams)
        name = self._check_name(model_name, dtype)
        if prompt is not None and (not isinstance(prompt, str) or not prompt.strip()):
            raise ConfigError(f"prompt={prompt!r} (--prompt): expected a text, or none")
        if not isinstance(column, str) or column in ("", URL_COLUMN, ERROR_COLUMN):
            raise ConfigError(f"column={column!r} (--column): expected the name of a new column")
        self.model_name = name
        self.prompt = prompt
        self.column = column
        self.max_new_tokens = max_new_tokens
        self.num_beams = num_beams
        self._take(model_dir, dtype, options)

    @property
    def spec(self) -> CaptionSpec:
        """What builds the model on a worker."""
        return CaptionSpec(
            self.model_name, self.model_dir, self.prompt, self.max_new_tokens, self.num_beams, self.dtype
        )

    def step(self, id_col: str, storage_options: Options = None) -> CaptionImages:
        """What is done to the rows of a shard."""
        return CaptionImages(
            self.spec, self.column, id_col, self.options, storage_options, json.dumps(self.settings())
        )
