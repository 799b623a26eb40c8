"""Questions about images with places for what their rows say, and the answers among which a model chooses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from curator_dask.errors import ConfigError
from curator_dask.words import counted

MOST_ANSWERS = 50
"""Each of several tokens may cost a pass through the model."""

MOST_TOKENS = 16
"""Of an answer."""

#: Ends the name of a column that is no answer's.
ANSWER, PROBABILITY, MASS, EXPECTED, FILLED = "answer", "probability", "mass", "expected", "filled"
_PARTS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d+)?|\.\d+)")


@dataclass(frozen=True)
class Question:
    """A text with places for columns.

    Attributes
    ----------
    texts
        Before, between and behind the places: one more than these are.
    fields
        Of each place the column.
    """

    texts: tuple[str, ...]
    fields: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, caption: str) -> Question:
        """Of a text with names of columns in braces; doubled braces are braces.

        Parameters
        ----------
        text
            The text.
        caption
            The column that ``{text}`` stands for.

        Raises
        ------
        ConfigError
            It is empty, or has a brace that is neither.
        """
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"question={text!r} (--question): expected a text")
        texts, fields, end = [""], [], 0
        for part in _PARTS.finditer(text):
            texts[-1] += text[end : part.start()]
            end = part.end()
            if (name := part[1]) is None and len(part[0]) == 2:
                texts[-1] += part[0][0]
            elif name:
                fields.append(caption if name == "text" else name)
                texts.append("")
            else:
                raise ConfigError(
                    f"question={text!r} (--question): expected the name of a column in braces, found {part[0]!r} at"
                    f" sign {part.start()}. A brace of the question itself is doubled: {{{{ or }}}}"
                )
        texts[-1] += text[end:]
        return cls(tuple(texts), tuple(fields))

    def __str__(self) -> str:
        """The text that it is made of, with the names of the columns."""
        plain = [text.replace("{", "{{").replace("}", "}}") for text in self.texts]
        places = [*(f"{{{name}}}" for name in self.fields), ""]
        return "".join(text + place for text, place in zip(plain, places, strict=True))

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of its fields, each once."""
        return tuple(dict.fromkeys(self.fields))

    def filled(self, values: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
        """The text with a value of each of `columns`, and where these begin and end in it."""
        by_name = dict(zip(self.columns, values, strict=True))
        parts = [self.texts[0]]
        for name, text in zip(self.fields, self.texts[1:], strict=True):
            parts += [by_name[name], text]
        ends = [0, *accumulate(map(len, parts))]
        return "".join(parts), [(ends[n], ends[n + 1]) for n in range(1, len(parts), 2)]


def broken_up(text: str, spans: Sequence[tuple[int, int]], special: re.Pattern[str] | None) -> str:
    """A question in which what rows say is text to a model, and none of its special tokens.

    Each of these that a value has, or makes together with what stands beside it, gets a space behind its first sign;
    those of the question itself stay.

    Parameters
    ----------
    text, spans
        As `Question.filled` gives them.
    special
        Of the special tokens' spellings; None: there are none.
    """
    if special is None or not spans:
        return text
    signs: list[str] = []
    done = 0
    at = 0
    while (found := special.search(text, at)) is not None:
        at = found.start() + 1  # one may begin within another
        if any(begin < found.end() and found.start() < end for begin, end in spans):
            signs += [text[done:at], " "]
            done = at
    return "".join([*signs, text[done:]])


def named_answers(answers: Sequence[Any] | Mapping[str, str | float]) -> dict[str, str]:
    """By the end of its column's name, each answer, numbers as texts.

    Parameters
    ----------
    answers
        Texts or numbers, with names or without; or pairs of a name and a text, which JSON keeps in their order.

    Raises
    ------
    ConfigError
        They are fewer than two or more than `MOST_ANSWERS`, one is empty or given twice, or two would make one column.
    """
    what = f"answers={answers!r} (--answer)"
    if not isinstance(answers, Mapping | list | tuple):
        raise ConfigError(f"{what}: expected a list of texts, or names and texts")
    if isinstance(answers, list | tuple) and all(
        isinstance(each, list | tuple) and len(each) == 2 for each in answers
    ):
        names = [name for name, _ in answers]
        if len({*map(str, names)}) < len(names):
            raise ConfigError(f"{what}: expected names that differ")
        answers = dict(answers)
    texts = list(answers.values() if isinstance(answers, Mapping) else answers)
    if any(isinstance(each, bool) for each in texts):
        raise ConfigError(
            f"{what}: expected texts: a bare Yes or No is true or false to YAML, so put it in quotes"
        )
    texts = [str(each) if isinstance(each, int | float) else each for each in texts]
    if not all(isinstance(each, str) and each.strip() for each in texts):
        raise ConfigError(f"{what}: expected texts that are not empty")
    if len(texts) < 2:
        raise ConfigError(
            f"{what}: expected at least two answers: what one has is its share of all that are given"
        )
    if len(texts) > MOST_ANSWERS:
        raise ConfigError(f"{what}: expected at most {MOST_ANSWERS} answers, found {len(texts)}")
    if len({each.strip() for each in texts}) < len(texts):
        raise ConfigError(f"{what}: expected answers that differ")
    names = list(answers) if isinstance(answers, Mapping) else [_plain(each) for each in texts]
    own = {ANSWER, PROBABILITY, MASS, EXPECTED, FILLED}
    for name, text in zip(names, texts, strict=True):
        if not isinstance(name, str) or not name or name in own or names.count(name) > 1:
            said = f"is what another column's name ends with ({name!r})" if name else "has no letter or digit"
            raise ConfigError(
                f"{what}: the answer {text!r} {said}: give it a name, as answers={{'as_yes': {text!r}}} (--answer"
                f" as_yes={text!r})"
            )
    return dict(zip(names, texts, strict=True))


def _plain(answer: str) -> str:
    return re.sub(r"\W+", "_", answer.strip().lower()).strip("_")


def numbers_of(answers: Sequence[str]) -> list[float] | None:
    """The numbers that answers are; None where not all are numbers."""
    found = [each.strip() for each in answers]
    return [float(each) for each in found] if all(map(_NUMBER.fullmatch, found)) else None


def check_tokens(answers: Sequence[str], tokens: Sequence[Sequence[int]], ends: Sequence[int]) -> None:
    """Raise ConfigError where a model cannot tell answers apart by their tokens.

    Parameters
    ----------
    answers, tokens
        The answers, and the tokens of each.
    ends
        Tokens that end a text.
    """
    for text, each in zip(answers, tokens, strict=True):
        if not each or {*each} & {*ends}:
            raise ConfigError(f"the answer {text!r} has no token of its own, or one that ends a text")
        if len(each) > MOST_TOKENS:
            raise ConfigError(
                f"the answer {text!r} is {counted(len(each), 'token')} long: expected at most {MOST_TOKENS}"
            )
    for text, each in zip(answers, tokens, strict=True):
        for other, longer in zip(answers, tokens, strict=True):
            if text is not other and tuple(longer[: len(each)]) == tuple(each):
                raise ConfigError(
                    f"the answer {other!r} begins with the tokens of {text!r}, so who begins to write it has written"
                    f" {text!r}: give answers none of which begins with another, such as letters, or digits 0 to 9"
                )


def contexts_of(tokens: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """What is to be written before the last token of each answer: as few as there may be, for each is a pass.

    What another begins with is none of its own.
    """
    before = sorted({each[:-1] for each in tokens})  # what begins with another stands behind it
    return [
        each
        for each, following in zip(before, [*before[1:], None], strict=True)
        if following is None or following[: len(each)] != each
    ]
