"""Tokens of a text, as a model's own tokenizer makes them: in one piece that fits, or in several."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curator_dask.errors import WeightsError
from curator_dask.models.towers import silent_transformers
from curator_dask.models.weights import first_line

TOKENIZER = "tokenizer.json"
TOKENIZERS = (
    TOKENIZER,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
)
"""Files of a tokenizer, as transformers writes them; a model has some."""

_WORDS = (
    TOKENIZER,
    *("vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model"),
)
_PROBE = "a"  # of which every tokenizer makes a token


class Tokens:
    """A model's tokenizer.

    Parameters
    ----------
    folder
        With its files, as transformers writes them.
    limit
        Tokens that the model takes, with those that begin and end a text.
    lowers
        Texts are put into lower case first.

    Raises
    ------
    WeightsError
        The folder has none that can be loaded, or the limit leaves no room for a text.
    """

    def __init__(self, folder: Path, limit: int, *, lowers: bool = False) -> None:
        self._lowers = lowers
        self._tokenizer = _load(folder)
        # What begins and ends each text is found by what a text has with it, and without.
        try:
            whole, bare = self._ids([_PROBE], True)[0], self._ids([_PROBE], False)[0]
        except Exception as error:  # tokenizers' own, without a type
            raise _unloaded(folder, error) from error
        starts = range(len(whole) - len(bare) + 1)
        start = next((at for at in starts if bare and whole[at : at + len(bare)] == bare), None)
        room = limit - (len(whole) - len(bare))
        if start is None or room < 1:
            raise WeightsError(
                f"{folder}: expected a tokenizer that puts tokens before and after those of a text, and a limit of more"
                f" tokens than these; found {bare} and {whole}, and a limit of {limit}"
            )
        self._before, self._after, self._room = whole[:start], whole[start + len(bare) :], room
        self.pad = int(self._tokenizer.pad_token_id or 0)
        self.limit = limit

    def pieces(self, texts: Sequence[str], whole: bool) -> list[list[list[int]]]:
        """The pieces of each text, of at most `limit` tokens: the first alone as the tokenizer truncates, or all."""
        found = []
        for ids in self._ids(texts, False):
            starts = range(0, max(len(ids), 1), self._room)
            parts = [ids[start : start + self._room] for start in (starts if whole else starts[:1])]
            found.append([[*self._before, *part, *self._after] for part in parts])
        return found

    def _ids(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        with silent_transformers():  # of texts beyond the limit it warns
            found = self._tokenizer(
                [text.lower() if self._lowers else text for text in texts],
                add_special_tokens=special,
                padding=False,
                truncation=False,
                verbose=False,
            )
        ids: list[list[int]] = found["input_ids"]
        return ids


def tokenizer_digest(folder: Path) -> str:
    """Twelve digits of a tokenizer's files."""
    digest = hashlib.sha256()
    for name in TOKENIZERS:
        if (folder / name).is_file():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()[:12]


def _load(folder: Path) -> Any:
    import transformers

    try:
        # Of a folder without these AutoTokenizer makes CLIP a tokenizer that knows no word, and says nothing.
        if not any((folder / name).is_file() for name in _WORDS):
            raise FileNotFoundError(f"expected one of {', '.join(_WORDS)}")
        with silent_transformers():
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise _unloaded(folder, error) from error


def _unloaded(folder: Path, error: Exception) -> WeightsError:
    found = sorted(path.name for path in folder.iterdir() if path.name in TOKENIZERS)
    return WeightsError(
        f"{folder}: the tokenizer cannot be loaded: {type(error).__name__}: {first_line(error)}. It has"
        f" {', '.join(found) or 'none of its files'}: put {TOKENIZER} and tokenizer_config.json there, as"
        " save_pretrained of transformers writes them; one of SentencePiece needs the packages"
        " sentencepiece and protobuf"
    )
