"""Models that write a text about an image: what transformers' AutoModelForImageTextToText loads from safetensors.

A `CaptionSpec` (small, frozen, hashable) travels; its `build` makes the `Captioner` on the worker.
"""

from __future__ import annotations

from dataclasses import dataclass

from curator_dask.frames.record import TEXT
from curator_dask.models.caption_inputs import Inputs, check_config
from curator_dask.models.captioner import Captioner
from curator_dask.models.writers import WriterSpec


@dataclass(frozen=True)
class CaptionSpec(WriterSpec):
    """Everything that decides what is written about an image.

    Attributes
    ----------
    model_name, model_dir, dtype
        See `WriterSpec`.
    prompt
        What the model is asked, or how the text begins; None: nothing.
    max_new_tokens
        Tokens of a text, at most.
    num_beams
        1: the likeliest token each time; more: beam search.
    """

    model_name: str
    model_dir: str | None = None
    prompt: str | None = None
    max_new_tokens: int = 64
    num_beams: int = 1
    dtype: str = "auto"

    check = staticmethod(check_config)

    def build(self) -> Captioner:
        """Make it on this process's device.

        Raises
        ------
        ConfigError
            It is no such model, or cannot be asked so.
        WeightsError
            The weights cannot be had, or do not fit the configuration.
        """
        import transformers

        writer = self.load(lambda _: transformers.AutoModelForImageTextToText, "write texts about images")
        inputs = Inputs(writer.folder, writer.model.config, self.prompt)
        search = "greedy" if self.num_beams == 1 else f"{self.num_beams} beams"
        info = writer.info(
            self.model_name,
            inputs.name,
            prompt=self.prompt,
            generation=f"{search}, at most {self.max_new_tokens} tokens [{writer.generation()}]",
            output=TEXT,
        )
        return writer.made(
            lambda model: Captioner(model, inputs, info, self.max_new_tokens, self.num_beams),
            "cannot write about a picture",
        )
