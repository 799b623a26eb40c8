"""Models that answer a question about an image: those that write about images, and are asked in words.

A `QuestionSpec` (small, frozen, hashable) travels; its `build` makes the `Asker` on the worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from curator_dask.frames.record import ANSWERS
from curator_dask.models.asker import Asker
from curator_dask.models.generating import ends_of
from curator_dask.models.question_inputs import QuestionInputs, check_config
from curator_dask.models.questions import Question
from curator_dask.models.writers import WriterSpec


@dataclass(frozen=True)
class QuestionSpec(WriterSpec):
    """Everything that decides how likely answers are.

    Attributes
    ----------
    model_name, model_dir, dtype
        See `WriterSpec`.
    question
        What the model is asked.
    answers
        Among which it chooses.
    """

    model_name: str
    question: Question
    answers: tuple[str, ...]
    model_dir: str | None = None
    dtype: str = "auto"

    check = staticmethod(check_config)

    def build(self) -> Asker:
        """Make it on this process's device.

        Raises
        ------
        ConfigError
            It is no such model, cannot be asked so, or its tokens do not tell the answers apart.
        WeightsError
            The weights cannot be had, or do not fit the configuration.
        """
        writer = self.load(_kind_of, "answer questions about images")
        ends = ends_of(writer.model).tolist()
        inputs = QuestionInputs(writer.folder, writer.model.config, self.question, self.answers, ends)
        info = writer.info(
            self.model_name,
            inputs.name,
            prompt=str(self.question),
            answers=sorted(self.answers),
            output=ANSWERS,
        )
        writer.generation()  # which decides no likelihood
        columns = len(self.question.columns)
        return writer.made(
            lambda model: Asker(model, inputs, info, len(self.answers), columns),
            "cannot be asked about a picture",
        )


def _kind_of(config: Mapping[str, Any]) -> Any:
    import transformers

    if config["model_type"] == "blip":
        return transformers.BlipForQuestionAnswering
    return transformers.AutoModelForImageTextToText
