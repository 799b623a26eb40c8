"""Asking a model about images: how likely each of some answers is behind a question, token by token.

The model's own ``generate`` gives the likelihoods, with the answer's tokens chosen for it (teacher forcing). So each
model's way with images, caches and encoders is its own, and an image is seen once for all answers of one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from curator_dask.errors import ImageError
from curator_dask.models.generating import Generating
from curator_dask.models.precision import pictures
from curator_dask.models.question_inputs import Asked, QuestionInputs
from curator_dask.models.questions import contexts_of
from curator_dask.models.towers import silent_transformers
from curator_dask.words import counted

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_ALIKE = 1e-3
"""Most that log-likelihoods of a picture in a batch, or filled up, may differ from those of it alone, in float32."""

_ALIKE_HALF = 0.1
"""The same in half precision."""

#: What a row says in a picture's question, to try questions of two lengths.
_SHORT, _LONG = "a", "a a a a a"


class Answers(NamedTuple):
    """How likely a model finds each answer to the question about an image.

    Attributes
    ----------
    likelihoods
        float64 (answers,): the logarithm of the likelihood of the answer's tokens, one after the other, behind the
        question; zeros where there is a reason.
    reason
        Why the model could not be asked.
    """

    likelihoods: np.ndarray
    reason: str | None = None


class Asker(Generating[Asked, Answers]):
    """A model that is asked about images, on this process's device.

    Parameters
    ----------
    model
        As transformers has it, on the device.
    inputs
        Its processor and tokenizer, the question and the answers.
    info
        What makes its answers, JSON-able.
    answers, columns
        How many answers there are, and how many columns the question has.

    Raises
    ------
    ConfigError
        The model cannot be asked so.
    Exception
        What the model or its processor raises of a picture.
    """

    done = "asked"

    def __init__(
        self, model: Any, inputs: QuestionInputs, info: dict[str, Any], answers: int, columns: int
    ) -> None:
        super().__init__(model, info)
        self._inputs, self._count, self._columns = inputs, answers, columns
        with silent_transformers():  # which warns once
            self._try()

    def _prepare(self, image: Image, values: Sequence[str] = ()) -> Asked:
        asked = self._inputs.ask(image, values)
        # InstructBLIP's Q-Former reads the question, too, by its own tokenizer.
        former: Any = getattr(self._model.config, "qformer_config", None)
        lengths = [(asked.length + max(map(len, asked.answers)), self._longest, "question and answer are")]
        if (read := asked.tensors.get("qformer_input_ids")) is not None:
            lengths.append(
                (read.shape[1], former.max_position_embeddings, "its Q-Former reads a question of")
            )
        for length, most, what in lengths:
            if most is not None and length > most:
                raise ImageError(f"{what} {length} tokens, and the model has room for {most}")
        return asked

    def _failed(self, reason: str) -> Answers:
        return Answers(np.zeros(self._count), reason)

    def inputs_of(self, batch: Sequence[Asked]) -> dict[str, torch.Tensor]:
        """The tensors of some images together; questions that are shorter than another are filled up."""
        if batch[0].pads:
            length = max(each.length for each in batch)
            batch = [each.padded(length, self._inputs.padding) for each in batch]
        return super().inputs_of(batch)

    def _together(self, batch: Sequence[Asked]) -> list[Answers]:
        found = self._likelihoods(batch).numpy()
        return [
            self._failed(self.not_finite)
            if np.isnan(each).any() or np.isneginf(each).all()
            else Answers(each)
            for each in found
        ]

    def _likelihoods(self, batch: Sequence[Asked]) -> torch.Tensor:
        """float64 (images, answers), on the CPU: as `Answers` has them; NaN where the model gave it."""
        import torch

        answers = batch[0].answers
        found: list[torch.Tensor | None] = [None] * len(answers)
        for context in contexts_of(answers):
            made = self._generate(
                batch,
                len(context) + 1,
                logits_processor=[_Forced(context)],
                output_logits=True,
                return_dict_in_generate=True,
            )
            if len(made.logits) != len(context) + 1:
                said = f"stopped after {counted(len(made.logits), 'token')} of {len(context) + 1}"
                raise RuntimeError(f"the model {said} of an answer")
            logs = [torch.log_softmax(each.double(), dim=-1) for each in made.logits]
            for number, answer in enumerate(answers):
                if found[number] is None and context[: len(answer) - 1] == answer[:-1]:
                    tokens = zip(logs, answer, strict=False)
                    found[number] = torch.stack([each[:, token] for each, token in tokens]).sum(dim=0)
        return torch.stack([each for each in found if each is not None], dim=1).cpu()

    def _try(self) -> None:
        """Ask about two pictures, alone and together, with questions of one length and of two."""
        from PIL import Image

        images = [Image.fromarray(each) for each in pictures(256, 256)]
        alike = _ALIKE if self.info["dtype"] == "float32" else _ALIKE_HALF

        def is_alike(alone: torch.Tensor, together: torch.Tensor) -> bool:
            return bool(((alone - together).abs().nan_to_num(0) <= alike).all())

        def asked(*said: str) -> list[Asked]:
            return [self._prepare(each, [it] * self._columns) for each, it in zip(images, said, strict=True)]

        several = asked(_SHORT, _LONG)
        if several[0].pads and not self._same_together(several, self._likelihoods, is_alike):
            self._inputs.pads = False
        if not self._same_together(asked(_SHORT, _SHORT), self._likelihoods, is_alike):
            self.one_at_a_time("how likely it finds answers")


class _Forced:
    """Has ``generate`` write these tokens, as one of its processors of logits; what follows is its own choice."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)

    def __call__(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        if not self._tokens:
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self._tokens.pop(0)] = 0
        return forced
