"""Writing about images with a model that is on its device: batches of one shape, no chance, and texts of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from curator_dask.errors import ConfigError
from curator_dask.models.caption_inputs import Inputs, Prepared
from curator_dask.models.generating import Generating, ends_of
from curator_dask.models.precision import pictures
from curator_dask.models.towers import silent_transformers

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_ALIKE = 0.99
"""Least cosine of the first token's logits of a picture in a batch to those of it alone, as bf16 may round them."""


class Caption(NamedTuple):
    """What a model wrote about an image.

    Attributes
    ----------
    text
        None where there is a reason, and where the model wrote nothing.
    cut
        Whether it had not come to its end at the last token that was allowed.
    reason
        Why the model could not write; None also where it wrote nothing.
    """

    text: str | None
    cut: bool = False
    reason: str | None = None


class Captioner(Generating[Prepared, Caption]):
    """A model that writes texts about images, on this process's device.

    Parameters
    ----------
    model
        As transformers has it, on the device.
    inputs
        Its processor, tokenizer and prompt.
    info
        What makes its texts, JSON-able.
    max_new_tokens, num_beams
        See `CaptionSpec`.

    Raises
    ------
    ConfigError
        A text may become longer than the model can take.
    Exception
        What the model or its processor raises of a picture.
    """

    done = "written"

    def __init__(
        self, model: Any, inputs: Inputs, info: dict[str, Any], max_new_tokens: int, num_beams: int
    ) -> None:
        super().__init__(model, info)
        self._inputs = inputs
        self._most, self._beams = max_new_tokens, num_beams
        self._ends = ends_of(model)
        self._is_forced = model.generation_config.forced_eos_token_id is not None
        with silent_transformers():  # which warns once
            self._try()

    def _prepare(self, image: Image, values: Sequence[str] = ()) -> Prepared:
        return self._inputs.prepare(image)

    def _failed(self, reason: str) -> Caption:
        return Caption(None, reason=reason)

    def _together(self, batch: Sequence[Prepared]) -> list[Caption]:
        finite = _Finite(len(batch), self._beams)
        tokens = self._generate(
            batch, self._most, logits_processor=[finite], return_dict_in_generate=False
        ).cpu()
        bad = finite.bad.tolist() if finite.bad is not None else [False] * len(batch)
        return [
            self._caption(row, each.prompt) if not is_bad else Caption(None, reason=self.not_finite)
            for row, each, is_bad in zip(tokens, batch, bad, strict=True)
        ]

    def _caption(self, row: torch.Tensor, prompt: torch.Tensor | None) -> Caption:
        """The text of a row of tokens: up to its end, without the prompt and special tokens."""
        import torch

        begin = 1 if prompt is None else len(prompt)
        if prompt is not None and not torch.equal(row[:begin], prompt):
            begin = 0  # the model gives what is new alone
        ends = torch.isin(row[begin:], self._ends).nonzero()
        stop = begin + int(ends[0]) if len(ends) else len(row)
        # Some models are made to end with the last token that is allowed.
        is_ended = len(ends) and not (self._is_forced and int(ends[0]) == self._most - 1)
        is_cut = not is_ended and len(row) - begin >= self._most
        text = self._decode(row[begin:stop])
        if prompt is not None and begin:
            # With what is before it, as of a word's second piece; as transformers' pipeline does it.
            before, whole = self._decode(prompt), self._decode(row[:stop])
            at = whole.find(before)
            text = whole[at + len(before) :] if 0 <= at <= 2 else text
        return Caption(text.strip() or None, is_cut)

    def _decode(self, tokens: torch.Tensor) -> str:
        found = self._inputs.decode(tokens[None], skip_special_tokens=True)
        return str(found[0] if isinstance(found, list) else found)

    def _try(self) -> None:
        """Write two tokens about two pictures, alone and together: what follows the first goes in another way."""
        import torch
        from PIL import Image

        some = [self._inputs.prepare(Image.fromarray(each)) for each in pictures(256, 256)]
        length = self._most + (1 if some[0].prompt is None else len(some[0].prompt))
        if self._longest is not None and length > self._longest:
            raise ConfigError(
                f"max_new_tokens={self._most} (--max-new-tokens): with the prompt these are {length} tokens, and the"
                f" model has room for {self._longest}"
            )

        def logits(batch: Sequence[Prepared]) -> torch.Tensor:
            made = self._generate(batch, min(2, self._most), output_logits=True, return_dict_in_generate=True)
            found: torch.Tensor = made.logits[0].float()
            return found[:: self._beams]

        def is_alike(alone: torch.Tensor, together: torch.Tensor) -> bool:
            return float(torch.nn.functional.cosine_similarity(alone, together).min()) >= _ALIKE

        if not self._same_together(some, logits, is_alike):
            self.one_at_a_time("what it writes")


class _Finite:
    """Looks, as one of ``generate``'s processors of logits, whether a row's are numbers; it changes none."""

    def __init__(self, rows: int, beams: int) -> None:
        self._rows, self._beams = rows, beams
        self.bad: torch.Tensor | None = None

    def __call__(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        bad = scores.isnan().any(dim=-1).view(self._rows, -1).any(dim=1)
        self.bad = bad if self.bad is None else self.bad | bad
        return scores
