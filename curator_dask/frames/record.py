"""What made a file: the record that every Parquet file of an output carries.

It is a JSON object under the key ``curator_dask`` of the file's key-value metadata; this module alone knows its form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from curator_dask.frames.names import CAPTION_DEFINITIONS

METADATA_KEY = b"curator_dask"
#: Of the record's form. Files without a number are of the first.
VERSION = 1
#: In what a record says of a score: some rows have a vector, and no score of it yet.
LACKING = "lacking"
#: In the same place: the column of texts, or of their vectors, that it was made of besides the images' vectors.
TEXTS = "texts"
#: In the same place: the columns that a question names, which a model was asked about the images.
FIELDS = "fields"
#: In the same place, of columns of a user's table: the rows' column by which they found theirs, and the table.
ON, TABLE = "on", "table"
#: In the same place, the column of shards, where keys and shards together say which row is which.
BY_SHARD = "by_shard"
#: In the same place, of columns by which a dataset is balanced: concepts, threshold and counts may change.
BALANCE = "balance"
#: In the same place: JSON-able arguments that make it again; it is not there where nothing does.
SETTINGS = "settings"
#: In the same place, of what a model sees in images without vectors: what it is, as `FileRecord.embeddings` has it.
MADE_BY = "made_by"
#: In what makes vectors, in the place of the digest of weights: a user says what made them, and nobody has seen it.
CLAIMED = "claimed"
#: In what makes a column of classes: the numbers of its classes, in their order, whatever they were called by.
CHOSEN = "chosen"
#: In what makes a column, as ``output``: it is a text that a model writes.
TEXT = "text"
#: The same: where things are that it finds.
BOXES = "boxes"
#: The same: how likely each of some answers is to a question about the image.
ANSWERS = "answers"
#: Among what a record says was derived: rows were left out of a file that was there.
FILTERED = "filter"

_KINDS: dict[str, type] = {
    "str": str,
    "str | None": str,
    "int": int,
    "tuple[str, ...]": list,
    "tuple[Mapping[str, Any], ...]": list,
    "Mapping[str, Any]": dict,
    "Mapping[str, Any] | None": dict,
}


def inputs_of(score: Mapping[str, Any]) -> list[str]:
    """The columns that a score was made of: vectors of images, texts or theirs, or by what a table's row was found."""
    return [
        *(score[name] for name in ("vectors", TEXTS, ON, BY_SHARD) if name in score),
        *score.get(FIELDS, ()),
    ]


def text_statistic(score: Mapping[str, Any]) -> tuple[str, str] | None:
    """The definition of a statistic of texts, and the model of languages, if any; None of another score."""
    name, mark, _ = str(score.get("head", "")).partition(" of captions")
    if not mark or name not in CAPTION_DEFINITIONS or TEXTS not in score:
        return None
    by = score.get("by")
    return CAPTION_DEFINITIONS[name], str(by.get("model", "")) if isinstance(by, Mapping) else ""


def made_by_model(info: Mapping[str, Any]) -> str:
    """What a model gives an image, in words, by what `FileRecord.models` says of its column."""
    if "dim" in info:
        return "a vector"
    return {TEXT: "a caption", BOXES: "boxes", ANSWERS: "answers"}.get(str(info.get("output")), "a class")


@dataclass(frozen=True)
class FileRecord:
    """What made a file.

    Attributes
    ----------
    fingerprint
        Of all that decided the content. Empty where something was given up, so that a rerun makes the file again.
    complete_as
        What the fingerprint is once rows that were given up have been tried again.
    rows
        How many the file was written with.
    id_col
        Column of the keys.
    shard
        State of the shard: ``url``, ``rows`` (start and stop), and ``tar`` and ``parquet`` as `FileStamp` has them;
        None where partitions were mixed.
    dataset
        Where partitions were mixed, a digest of all shards that they came from, if these are known.
    source
        ``"parquet"`` or ``"tar"``: where the rows came from.
    embeddings
        By column, what made its vectors (`curator_dask.models.encoders.EncoderInfo` as a dict).
    settings
        By column, the arguments that make its embedder again; null for one of the user's own.
    read_by
        By column of vectors, or of what was seen in images, what decided it besides model and shard
        (`curator_dask.runs.step.Step.read_by`).
    scores
        By column, what made scores of vectors (`curator_dask.runs.step.ScoringStep.scores`), what classified images,
        or which table gave it.
    derived
        What was made of vectors or pixels by what the file does not hold, by name: functions, and columns of steps.
        It cannot be made again from the file alone.
    filters
        Of each filter that has left rows out of a file that was there (`FILTERED`), in their order: what it kept
        (``where``, ``top``, ``at_most``, ``by``, None for what was not asked; ``nearest``: to how many queries how many
        rows each), and how many ``rows`` were ``kept``.
        Files of earlier versions have none.
    remarks
        What was noticed of the shards on the way (`curator_dask.rows.remarks`).
    report
        What the file came to, as `curator_dask.runs.reports.report_of` makes it; None where rows have been tried
        again since.
    earlier
        By column of `models` that the last run has kept and not made: ``fingerprint``, ``complete_as`` and ``report``
        of the run that made it, and the state of the ``tar`` that it was made of. Under ``""`` the same of the last run
        whose columns are of no model.
    origin
        State of the file of another folder, of which this one was made by adding columns; None: of none.
    removed
        Rows that ``curator-dask remove`` has taken out since it was written; they are in none of the counts.
    version
        Of the record's form.
    """

    fingerprint: str
    complete_as: str = ""
    rows: int = -1
    id_col: str | None = None
    shard: Mapping[str, Any] | None = None
    dataset: str | None = None
    source: str | None = None
    embeddings: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    read_by: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    derived: tuple[str, ...] = ()
    filters: tuple[Mapping[str, Any], ...] = ()
    remarks: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] | None = None
    earlier: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] | None = None
    removed: int = 0
    version: int = VERSION

    @classmethod
    def parse(cls, metadata: Mapping[bytes, bytes] | None) -> FileRecord | None:
        """The record in the key-value metadata of a file, or of its schema; None if there is none that can be read."""
        try:
            stored = json.loads((metadata or {}).get(METADATA_KEY, b"null"))
        except ValueError:
            return None
        if not isinstance(stored, dict):
            return None
        found: dict[str, Any] = {"fingerprint": ""}
        for each in fields(cls):
            value = stored.get(each.name)
            # What a later version, or somebody else, has put into a field's place is not taken.
            if isinstance(value, _KINDS[str(each.type)]):
                found[each.name] = tuple(value) if isinstance(value, list) else value
        return cls(**found)

    def to_metadata(self) -> dict[bytes, bytes]:
        """The record as an entry of a file's key-value metadata."""
        return {METADATA_KEY: json.dumps(vars(self), sort_keys=True).encode()}

    def run_of(self, column: str) -> Mapping[str, Any]:
        """What `earlier` says of a column, be it of the last run or of an earlier one."""
        if column in self.earlier:
            return {"fingerprint": "", "complete_as": "", "report": None, "tar": None, **self.earlier[column]}
        last = {"fingerprint": self.fingerprint, "complete_as": self.complete_as, "report": self.report}
        return {**last, "tar": (self.shard or {}).get("tar")}

    @property
    def models(self) -> dict[str, Mapping[str, Any]]:
        """What made each column that a model makes of images: vectors, classes and texts."""
        classes = {name: said[MADE_BY] for name, said in self.scores.items() if MADE_BY in said}
        return {**self.embeddings, **classes}

    @property
    def is_filtered(self) -> bool:
        """Whether the file has the rows alone that passed a filter of another output."""
        return FILTERED in self.derived and not self.complete_as

    def has_score(self, column: str, recipe: Any) -> bool:
        """Whether a column has the scores of a head, by its recipe, of all vectors that there are."""
        said = self.scores.get(column, {})
        return said.get("recipe") == recipe and LACKING not in said

    @property
    def url(self) -> str | None:
        """The shard's."""
        return (self.shard or {}).get("url")
