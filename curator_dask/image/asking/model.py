"""`QuestionModel`: a model of transformers' that is asked about images, run over a dataset; its answers as columns."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Unpack

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError
from curator_dask.frames.names import CAPTION_COLUMN
from curator_dask.image.asking.step import AskImages, check_said
from curator_dask.image.classifiers.whole import ReadingOptions, TransformersModel
from curator_dask.models.asking import QuestionSpec
from curator_dask.models.questions import Question, named_answers
from curator_dask.runs.step import types_of
from curator_dask.storage import Options

QUESTION_COLUMN = "question"


class QuestionModel(TransformersModel):
    """Adds how likely a model finds each answer to a question about each image, in the pass that embeds, or by itself.

    Parameters
    ----------
    model_name
        One of transformers' models that write texts about images and can be asked, as for `CaptionModel`: with a chat
        template (LLaVA, SmolVLM, Qwen2-VL …), PaliGemma, BLIP-2, InstructBLIP, GIT, or BLIP for question answering.
    question
        What is asked: it goes in behind the image, through the model's chat template where it has one. A column's name
        in braces stands for what the row says there, ``{text}`` for the caption; braces of the question are doubled. A
        row in which such a column is null or empty is not asked.
    answers
        Among which the model chooses, two or more: texts, or by the end of its column's name each text. Their
        probabilities are shares that add up to 1. An answer that begins with a space is taken as it is; others are put
        behind the question as the chat template puts an answer there.
    column
        Begins the names of the new columns, before ``_answer``, ``_probability``, ``_mass``, ``_expected``, ``_filled``
        and those of the answers.
    text
        The column that ``{text}`` stands for.
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
    named = "the answers others (column='fits', --column fits)"

    def __init__(
        self,
        model_name: str | os.PathLike[str],
        *,
        question: str,
        answers: Sequence[Any] | Mapping[str, str | float],
        column: str = QUESTION_COLUMN,
        text: str = CAPTION_COLUMN,
        model_dir: str | os.PathLike[str] | None = None,
        dtype: str = "auto",
        **options: Unpack[ReadingOptions],
    ) -> None:
        name = self._check_name(model_name, dtype)
        for option, given in (("column (--column)", column), ("text (--text)", text)):
            if not isinstance(given, str) or not given:
                raise ConfigError(f"{option}: expected the name of a column, found {given!r}")
        Question.parse(question, text)  # which says what is wrong with it
        self.model_name = name
        self.question = question
        self.answers = [[*pair] for pair in named_answers(answers).items()]
        self.column = column
        self.text = text
        self._take(model_dir, dtype, options)

    @property
    def spec(self) -> QuestionSpec:
        """What builds the model on a worker."""
        question = Question.parse(self.question, self.text)
        return QuestionSpec(
            self.model_name, question, tuple(text for _, text in self.answers), self.model_dir, self.dtype
        )

    def step(self, id_col: str, storage_options: Options = None) -> AskImages:
        """What is done to the rows of a shard."""
        return AskImages(
            self.spec,
            self.column,
            tuple(name for name, _ in self.answers),
            id_col,
            self.options,
            storage_options,
            json.dumps(self.settings()),
        )

    def __call__(self, dataset: ImageTextPairDataset) -> ImageTextPairDataset:
        """The dataset with the columns and ``image_error`` as its last; nothing is computed yet.

        Raises
        ------
        ConfigError
            The dataset lacks a column that the question names, it has neither texts nor numbers, it is made in the same
            pass, or the dataset has another column with the name of a new one.
        """
        made = {name for step in dataset.steps for name in step.columns}
        if late := [name for name in self.spec.question.columns if name in made]:
            raise ConfigError(
                f"question (--question): {{{late[0]}}} is made in the same run, and is not there when the images are"
                " asked about: write the dataset with it first (export), and ask about that"
            )
        asks = super().__call__(dataset)
        types = types_of(dataset.metadata._meta)
        for name in self.spec.question.columns:  # before a large model is loaded
            check_said(name, types.field(name).type)
        return asks

    def _refuse(self, names: Collection[str], parquet: Iterable[str | None], options: Options) -> None:
        if lacking := [name for name in self.spec.question.columns if name not in names]:
            other = (
                " ({text} stands for the column that text, --text, names)" if lacking[0] == self.text else ""
            )
            raise ConfigError(
                f"question (--question): names the column {lacking[0]!r}{other}, and the rows have"
                f" {', '.join(map(str, names))}"
            )
        super()._refuse(names, parquet, options)
