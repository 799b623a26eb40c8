"""What goes into a model that is asked about images: as for captions, with a question that a row's columns complete.

And which tokens an answer is behind it, as the model itself would write them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from curator_dask.errors import ConfigError, ImageError
from curator_dask.models import caption_inputs
from curator_dask.models.caption_inputs import IMAGE_ALONE, NEED_TEXT, Inputs
from curator_dask.models.hub import CONFIG
from curator_dask.models.questions import Question, broken_up, check_tokens

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

ANSWERS_BLIP = "BlipForQuestionAnswering"
_INSTRUCT = "instructblip"

#: Tensors with a value a token of the input, which may be filled up before the first; and with what, None: padding.
_BY_TOKEN = {"input_ids": None, "attention_mask": 0, "token_type_ids": 0, "mm_token_type_ids": 0}
#: Those besides that have a row a token.
_OF_TOKENS = (*_BY_TOKEN, "cross_attention_mask")
#: Last tokens of a question that must be its processor's.
_KNOWN = 8
#: What processors put in the place of images' tokens for a while, and look for in the text again.
_PLACEHOLDERS = ("<|placeholder|>", "<placeholder>")
#: What a processor adds to the question, by ``model_type``.
_BEHIND = {"paligemma": "\n"}
#: Signs that special tokens have, too, and by which none is known: others are.
_COMMON = frozenset("/_-.,:;!?#+'")
#: In place of an answer, to see how a template has one; and of what a row says.
_SOME = "a"
#: Sizes of images for which it is known how many special tokens a plain question comes to.
_SIZES = 256


Tokens = tuple[tuple[int, ...], ...]
"""Of each answer."""


class _Behind(NamedTuple):
    """How answers go on behind a question.

    Attributes
    ----------
    less
        How many of the question's last tokens are others where an answer stands behind them.
    question
        The question's tokens, behind the image and the token that follows it.
    answers
        Those of the answers, the others among them.
    """

    less: int
    question: list[int]
    answers: Tokens


@dataclass(frozen=True)
class Asked(caption_inputs.Prepared):
    """What goes into a model for one image and its question.

    Attributes
    ----------
    answers
        The tokens of each answer.
    pads
        Whether questions of other lengths may go in together, filled up before their first token.
    """

    answers: Tokens
    pads: bool = False

    @property
    def length(self) -> int:
        """Tokens of the input."""
        return int(self.tensors["input_ids"].shape[1]) if "input_ids" in self.tensors else 0

    @property
    def shapes(self) -> tuple[Any, ...]:
        """By which images may go in together."""
        if not self.pads:
            return (self.answers, *super().shapes)
        others = {name: each.shape for name, each in self.tensors.items() if name not in _BY_TOKEN}
        return (self.answers, *sorted((name, tuple(shape)) for name, shape in others.items()))

    def padded(self, length: int, padding: int) -> Asked:
        """The same with so many tokens, those before its first of no account."""
        import torch

        more = length - self.length
        if not more:
            return self
        tensors = dict(self.tensors)
        for name in {*tensors} & {*_BY_TOKEN}:
            value = padding if _BY_TOKEN[name] is None else _BY_TOKEN[name]
            tensors[name] = torch.nn.functional.pad(tensors[name], (more, 0), value=value)
        return replace(self, tensors=tensors)


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Raise ConfigError where a ``config.json`` is of no model of transformers' that answers questions about images."""
    caption_inputs.check_config(config, name)
    found = config["model_type"]
    if found == "blip" and ANSWERS_BLIP not in (config.get("architectures") or ()):
        raise ConfigError(
            f"{name}: is a BLIP that writes captions: expected one whose {CONFIG} has the architecture {ANSWERS_BLIP},"
            " such as Salesforce/blip-vqa-base"
        )
    if found in (IMAGE_ALONE, "florence2"):
        why = (
            "takes no text"
            if found == IMAGE_ALONE
            else "takes the tasks that it was trained for, and no questions"
        )
        raise ConfigError(f"{name}: its model_type is {found}, which {why}: it cannot be asked")


class QuestionInputs(Inputs):
    """A model's processor and tokenizer, the question and the answers.

    Parameters
    ----------
    folder, config
        As for `Inputs`.
    question, answers
        What is asked, and what may be answered.
    ends
        Tokens that end a text.

    Raises
    ------
    ConfigError
        They cannot be loaded, the model cannot be asked so, or its tokens do not tell the answers apart.
    """

    need_text = (*NEED_TEXT, _INSTRUCT)

    def __init__(
        self, folder: Path, config: Any, question: Question, answers: Sequence[str], ends: Sequence[int]
    ) -> None:
        super().__init__(folder, config, question.filled([_SOME] * len(question.columns))[0])
        self._question, self._answers, self._ends = question, list(answers), ends
        self.pads = True
        self._special = self._special_tokens()
        spellings = sorted(map(re.escape, self._special), key=len, reverse=True)
        self._spelt = re.compile("|".join(spellings)) if spellings else None
        self._signs = {
            sign for each in self._special for sign in each if not (sign.isalnum() or sign.isspace())
        } - _COMMON
        self._numbers = self._counted_tokens()
        self._usual: dict[tuple[int, int], Counter[int]] = {}
        self._is_chat = self.prepare == self._of_chat
        self._space = self._space_before() if self._is_chat else " "
        self._alone: Tokens | None = None
        self._last: tuple[str, _Behind] | None = None
        if config.model_type == "blip":
            self.prepare = self._of_blip_question

    def ask(self, image: Image, values: Sequence[str] = ()) -> Asked:
        """What goes in for an image, and what its row says in each of the question's columns.

        Raises
        ------
        ImageError
            What it says would be special tokens of the model.
        ConfigError
            The processor makes something else than what images can be put together of.
        """
        text = broken_up(*self._question.filled(values), self._spelt)
        made = self.prepare(image, text)
        # PaliGemma's processor gives these always: they are for training.
        made = replace(made, tensors={name: each for name, each in made.tensors.items() if name != "labels"})
        if any(self._signs & {*unicodedata.normalize("NFKC", each)} for each in values):
            self._check_special(made, image)
        if made.prompt is None:
            return self._asked(made.tensors, None, self._answers_alone())
        behind = self._behind(text)
        ids, known, less = made.prompt.tolist(), min(_KNOWN, len(behind.question)), behind.less
        if less > known or ids[len(ids) - known :] != behind.question[len(behind.question) - known :]:
            raise ConfigError("its processor ends the question with other tokens than its tokenizer")
        tensors = dict(made.tensors)
        if less:
            tensors |= {name: each[:, :-less] for name, each in tensors.items() if name in _OF_TOKENS}
        return self._asked(tensors, made.prompt[: len(ids) - less], behind.answers)

    def _asked(
        self, tensors: Mapping[str, torch.Tensor], prompt: torch.Tensor | None, answers: Tokens
    ) -> Asked:
        length = tensors["input_ids"].shape[1] if "input_ids" in tensors else -1
        found = {name for name, each in tensors.items() if name in _OF_TOKENS and each.shape[1] == length}
        pads = self.pads and "attention_mask" in found and found <= {*_BY_TOKEN}
        return Asked(tensors, prompt, answers, pads)

    @property
    def padding(self) -> int:
        """The token that fills up."""
        found = self.tokenizer.pad_token_id
        return 0 if found is None else int(found)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _answers_alone(self) -> Tokens:
        """The answers' tokens where these begin anew, as of models that encode the question."""
        if self._alone is None:
            found = tuple(tuple(self._ids(each)) for each in self._answers)
            check_tokens(self._answers, found, self._ends)
            self._alone = found
        return self._alone

    def _behind(self, question: str) -> _Behind:
        """The answers behind a question, tokenized with it: what stands before a word decides its tokens."""
        if self._last is not None and self._last[0] == question:
            return self._last[1]
        prompt = question + _BEHIND.get(self._config.model_type, "")
        if self._is_chat:
            prompt = self._rendered(question, None)
        before = self._ids(prompt)
        space = "" if prompt[-1:].isspace() else self._space
        whole = [self._ids(prompt + (each if each[:1].isspace() else space + each)) for each in self._answers]
        same = min(_same(before, each) for each in whole)
        answers = tuple(tuple(each[same:]) for each in whole)
        check_tokens(self._answers, answers, self._ends)
        # The image stands for one token here, for many in what the processor makes, and other signs may end these.
        seen = max((place for place, each in enumerate(before) if each in self._images_tokens()), default=-2)
        found = _Behind(len(before) - same, before[seen + 2 :], answers)
        self._last = question, found
        return found

    def _images_tokens(self) -> set[int | None]:
        names = (getattr(self._processor, name, None) for name in ("image_token", "boi_token", "eoi_token"))
        return {self._special.get(str(each)) for each in names} - {None}

    def _rendered(self, question: str, answer: Any) -> str:
        """A conversation as the model's template writes it: up to where the model answers, or with its answer."""
        told = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        told += [] if answer is None else [{"role": "assistant", "content": answer}]
        return str(
            self._processor.apply_chat_template(told, add_generation_prompt=answer is None, tokenize=False)
        )

    def _space_before(self) -> str:
        """What stands before an answer, as the template has it of answers that were given before."""
        for answer in ([{"type": "text", "text": _SOME}], _SOME):
            try:
                prompt, whole = (self._rendered(_SOME, each) for each in (None, answer))
            except Exception:  # whatever a template raises of an answer in this form
                continue
            behind = whole[len(prompt) :]
            if whole.startswith(prompt) and behind.strip().startswith(_SOME):
                return behind[: len(behind) - len(behind.lstrip())]
        return ""

    def _of_blip_question(self, image: Image, prompt: str | None = None) -> caption_inputs.Prepared:
        """As the documentation of BLIP for questions has it: the question is encoded, and the answer begins anew."""
        return replace(self._of_text(image, prompt), prompt=None)

    def _special_tokens(self) -> dict[str, int | None]:
        """By their spelling, the special tokens of a model, with their numbers, and what its processor looks for."""
        tokenizer = self.tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        names = [
            *tokenizer.all_special_tokens,
            *(str(each) for each in added if each.special),
            *_PLACEHOLDERS,
        ]
        own = {name: each for name, each in vars(self._processor).items() if name.endswith("_token")}
        names += [str(getattr(each, "content", each)) for each in own.values() if each is not None]
        known = tokenizer.get_vocab()
        return {name: known.get(name) for name in dict.fromkeys(names) if name.strip()}

    def _counted_tokens(self) -> set[int]:
        """Numbers of the special tokens that no plain text comes to.

        A word that a tokenizer does not know is its unknown token. Where this is what ends a text, too, as in those of
        OPT and GPT-2, they know every word.
        """
        tokenizer = self.tokenizer
        others = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
        plain = {tokenizer.unk_token} - others
        return {number for name, number in self._special.items() if number is not None and name not in plain}

    def _check_special(self, made: caption_inputs.Prepared, image: Image) -> None:
        """Raise ImageError where a question has other special tokens than one whose row says something plain."""
        if image.size not in self._usual:
            if len(self._usual) >= _SIZES:
                self._usual.clear()
            self._usual[image.size] = self._count(self.prepare(image))
        if self._count(made) != self._usual[image.size]:
            raise ImageError("what the row says in the question becomes special tokens of the model")

    def _count(self, made: caption_inputs.Prepared) -> Counter[int]:
        ids = made.tensors["input_ids"][0].tolist() if "input_ids" in made.tensors else []
        return Counter(each for each in ids if each in self._numbers)


def _same(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two begin with alike."""
    return next(
        (place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )
