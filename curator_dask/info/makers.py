"""Who made the columns of a file, by its record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from curator_dask.frames.names import ERROR_COLUMN, IMAGE_DEFINITIONS, URL_COLUMN
from curator_dask.frames.record import (
    ANSWERS,
    BALANCE,
    BOXES,
    CLAIMED,
    LACKING,
    MADE_BY,
    ON,
    TABLE,
    TEXT,
    TEXTS,
    FileRecord,
    text_statistic,
)

#: What a file's record says was derived, of a table of duplicates and of rows beside new tars.
DEDUP, EXPORT = "dedup", "export"
#: Hexadecimal digits of a digest that are shown.
_DIGITS = 12


#: What a model sees in images, by its output; and what is told of how.
_SEEN = {TEXT: "caption", BOXES: "detect", ANSWERS: "ask"}
_HOW = {TEXT: ("prompt", "generation"), BOXES: ("prompt", "detection"), ANSWERS: ("prompt",)}


class Maker(NamedTuple):
    """Who made a column of a file.

    Attributes
    ----------
    kind
        ``embed``, ``import``, ``classify``, ``caption``, ``detect``, ``ask``, ``score``, ``balance``, ``join``,
        ``statistics``, ``texts``, ``dedup``, ``function``, ``dataset``, ``run`` or ``unknown``.
    text
        In words.
    digest
        All that is recorded of it: columns of the same text may differ there.
    """

    kind: str
    text: str
    digest: str = ""

    @property
    def told(self) -> str:
        """Kind and text."""
        return self.text if self.kind in ("dataset", "run", "unknown") else f"{self.kind}: {self.text}"


#: What to run, by kind of maker, for a column that some files lack; and for one that several have made.
AGAIN = {
    "embed": "run the same embed again, which makes what is missing",
    "import": "run the same import again, which makes what is missing",
    "classify": "run the same classify again, which makes what is missing",
    "caption": "run the same caption again, which makes what is missing",
    "detect": "run the same detect again, which makes what is missing",
    "ask": "run the same ask again, which makes what is missing",
    "score": "run the same score again, which makes what is missing",
    "texts": "run the same score --text-statistics again, which makes what is missing",
    "balance": "run the same balance again",
    "join": "run the same join again, which makes what is missing",
    "statistics": "run embed with the same --statistics again, which makes what is missing",
}


def makers_of(record: FileRecord | None, names: Iterable[str]) -> dict[str, Maker]:
    """Who made each of the columns."""
    if record is None:
        return dict.fromkeys(names, Maker("unknown", "the file does not say"))
    return {name: _maker(record, name) for name in names}


def _maker(record: FileRecord, name: str) -> Maker:
    if name == record.id_col:
        return Maker("run", "the key")
    if name == URL_COLUMN:
        return Maker("run", "the shard")
    if name == ERROR_COLUMN:
        return Maker("run", "why a row failed")
    if name in record.embeddings:
        info = record.embeddings[name]
        if info.get("weights") == CLAIMED:
            said = (
                f"claimed to be of {info['claimed']}" if "claimed" in info else "nothing says of which model"
            )
            return Maker("import", f"{said}{', unit length' * bool(info.get('normalized'))}", _plain(info))
        return Maker("embed", _model(info), _plain(info))
    if name in record.scores:
        said = record.scores[name]
        return _scored({key: value for key, value in said.items() if key != LACKING})
    way = record.read_by.get(name, "")
    if isinstance(way, str) and " statistics " in way:
        statistic = way.partition(" ")[0]
        return Maker("statistics", IMAGE_DEFINITIONS.get(statistic, statistic), way)
    if DEDUP in record.derived:
        return Maker(DEDUP, f"eps {(record.report or {}).get('eps', 'not known')}")
    if name in record.derived:
        return Maker("function", "a stage, or a function of yours")
    if EXPORT in record.derived:
        return Maker("dataset", "as it was in the rows exported")
    return Maker("dataset", "the dataset")


def _scored(said: Mapping[str, Any]) -> Maker:
    digest = str(said.get("recipe") or _plain(said))
    head = str(said.get("head", ""))
    if TABLE in said:
        return Maker("join", f"{said[TABLE]}, found by {said.get(ON)}", digest)
    if MADE_BY in said:
        kind = _SEEN.get(str(said[MADE_BY].get("output")), "classify")
        return Maker(kind, _model(said[MADE_BY]), digest)
    if said.get(BALANCE) in ("concepts", "captions", "clusters"):
        return Maker("balance", head, digest)
    if (found := text_statistic(said)) is not None:
        definition, model = found
        return Maker("texts", f"{definition}, of {said[TEXTS]}{f', by {model}' if model else ''}", digest)
    if TEXTS in said and "vectors" not in said:
        return Maker("texts", head, digest)
    return Maker("score", f"{head} on {said.get('vectors', 'vectors')}, recipe {digest[:_DIGITS]}", digest)


def _model(info: Mapping[str, Any]) -> str:
    model, source = str(info.get("model") or "a model"), str(info.get("source") or "")
    weights = str(info.get("weights") or "").removeprefix("sha256:")
    parts = [model, *([f"weights {weights[:_DIGITS]}"] if weights else [])]
    how = _HOW.get(str(info.get("output")), ("output",))
    parts += [
        f"prompt {info[each]!r}" if each == "prompt" else str(info[each]) for each in how if info.get(each)
    ]
    parts += ["unit length"] if info.get("normalized") else []
    parts += [f"{info['cover']}"] if info.get("cover") else []
    size = (info.get("transform") or {}).get("size") if isinstance(info.get("transform"), Mapping) else None
    parts += [f"{' x '.join(map(str, size))} pixels"] if isinstance(size, list | tuple) else []
    return ", ".join([*parts, *([source] if source and source not in (model, "timm") else [])])


def _plain(said: Mapping[str, Any]) -> str:
    return json.dumps(said, sort_keys=True, default=str)
