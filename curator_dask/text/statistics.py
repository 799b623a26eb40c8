"""`TextStatistics`: columns that say of each caption what it is."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.names import CAPTION_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import open_parquet, read_record
from curator_dask.frames.record import TEXTS, FileRecord
from curator_dask.image.statistics.step import schema_ahead
from curator_dask.models.languages import LANGUAGES, LanguageModel, LanguageSpec, runtime_version
from curator_dask.outputs.choosing import read_rows
from curator_dask.runs.lineage import trace
from curator_dask.runs.passes import RowStep
from curator_dask.runs.step import Known, Made, Rows, Work, types_of
from curator_dask.storage import Options
from curator_dask.text.captions import Captions, check_captions
from curator_dask.text.measures import EVERY_TEXT, GROUPS, MEASURES, OF_LANGUAGE, TEXT_STATISTICS
from curator_dask.text.personal import PERSONAL, PERSONAL_MEASURES
from curator_dask.threads import in_threads
from curator_dask.webdataset.shards import ShardSet
from curator_dask.words import none_of_these


class TextStatistics:
    """Adds statistics of each caption as columns: in the pass that embeds, or to an output that is there.

    They need no image, and no vector. Where a row has no caption, or a blank one, they are null, and the image stays
    good. Of several captions of a row (a column of lists) they are those of the first that is not blank.

    Parameters
    ----------
    names
        Which of `TEXT_STATISTICS`; all by default (``"all"``). ``"personal"``: those of personal data.

        ``words`` (parts between white space) and ``characters`` (code points), as DataComp counts them; ``language``,
        fastText's (ISO 639-1, or 639-3 where that has none), and ``language_confidence``, from 0 to 1;
        ``alphanumeric``, ``digits`` and ``non_ascii``, shares of the characters; ``repeated_characters`` and
        ``repeated_words``, from 0 to 1, the more the more often the same comes again; ``has_url`` and ``is_file_name``.
        Not among all: ``has_email``, ``has_phone``, ``has_ip`` and ``has_card_number``. `curator_dask.text.measures`
        and `curator_dask.text.personal` have their definitions.
    text
        Column of the captions.
    prefix
        Before each name.
    language_model
        File of another model of fastText's, such as lid.176.bin, with which DataComp's filter was made. None: the small
        one of the same languages, lid.176.ftz.

    Raises
    ------
    ConfigError
        There is no such statistic, or a model of languages is given and no language is asked for.
    """

    def __init__(
        self,
        names: Sequence[str] | None = None,
        text: str = CAPTION_COLUMN,
        *,
        prefix: str = "text_",
        language_model: str | os.PathLike[str] | None = None,
    ) -> None:
        given = ["all"] if names is None else list(names)
        unknown = [name for name in given if name not in EVERY_TEXT and name not in GROUPS]
        if unknown or not given or isinstance(names, str):
            raise ConfigError(
                f"names={names!r} (--text-statistics): expected a list of some of {', '.join(TEXT_STATISTICS)}; of"
                f" personal (all of them) or of {', '.join(PERSONAL)}"
            )
        chosen = {each for name in given for each in GROUPS.get(name, (name,))}
        if not isinstance(text, str) or not text or not isinstance(prefix, str):
            raise ConfigError(f"text={text!r}, prefix={prefix!r}: expected the name of a column, and text")
        self.names = [name for name in EVERY_TEXT if name in chosen]
        self.text = text
        self.prefix = prefix
        self.language_model = None if language_model is None else os.fspath(language_model)
        if language_model is not None and not {*OF_LANGUAGE} & {*chosen}:
            raise ConfigError(
                f"language_model={self.language_model!r} (--language-model): nothing is asked of it. Add language to"
                f" {self.names}, or leave it out"
            )
        if text in self.columns:
            raise ConfigError(f"prefix={prefix!r}: the column {text!r} of the captions would be lost")

    @property
    def columns(self) -> list[str]:
        """Of the statistics."""
        return [self.prefix + name for name in self.names]

    @property
    def pred_column(self) -> str:
        """The first of them."""
        return self.columns[0]

    @property
    def files(self) -> list[str]:
        """Those of a user's that decide the values."""
        return [] if self.language_model is None else [self.language_model]

    def scorers(self) -> list[TextStatistics]:
        """The same one by one: so of files that are there only what is missing is made."""
        models = {name: self.language_model if name in OF_LANGUAGE else None for name in self.names}
        return [
            TextStatistics([name], self.text, prefix=self.prefix, language_model=model)
            for name, model in models.items()
        ]

    def __call__(self, dataset: ImageTextPairDataset) -> ImageTextPairDataset:
        """The dataset with the statistics as its last columns; nothing is computed yet.

        Raises
        ------
        DatasetError
            The dataset has no such column.
        ConfigError
            The captions are no text, or the dataset has another column of one of these names.
        """
        inputs = trace(dataset.metadata).inputs or ()
        schema = types_of(dataset.metadata._meta)
        self._check(schema, (part.shard.parquet for part in inputs), dataset.id_col, dataset.storage_options)
        return dataset.apply(self.step())

    def check(
        self,
        found: ShardSet,
        id_col: str,
        *,
        further: Collection[str] = (),
        storage_options: Options = None,
        **how: Any,
    ) -> None:
        """See before there is a cluster that captions and model are there; of tars in a store the model alone.

        Parameters
        ----------
        found, id_col, storage_options, how
            As for `curator_dask.image.statistics.step.schema_ahead`.
        further
            Columns that the rows get before.

        Raises
        ------
        ConfigError, DatasetError
            As when it is called.
        WeightsError
            The model of languages is not there.
        """
        self.step()
        schema = schema_ahead(found, id_col, storage_options=storage_options, **how)
        if schema is not None and self.text not in further:
            self._check(schema, (shard.parquet for shard in found.shards), id_col, storage_options)

    def of_files(self, records: Mapping[str, FileRecord | None], options: Options = None) -> MeasureTexts:
        """The step for files, by what made them; `options` are for fsspec."""
        path, record = next(iter(records.items()))
        with open_parquet(path, options) as file:
            schema = file.schema_arrow
        if self.text in schema.names:  # else it is named when all files have been looked at
            check_captions(self.text, schema.field(self.text).type)
        vectors = () if record is None else tuple(record.embeddings)
        self._refuse({(record and record.id_col) or "key", URL_COLUMN, *vectors} & {*self.columns})
        return self.step()

    def count_captions(self, paths: Sequence[str], options: Options = None) -> dict[str, Any]:
        """How many rows of files that have these columns have a caption, and in which languages these are.

        Parameters
        ----------
        paths, options
            Of the files.

        Returns
        -------
        dict
            ``rows``; ``with_caption``, those whose caption is not blank; and, if that is among the columns,
            ``languages``: the rows of each, the commonest first.

        Raises
        ------
        ShardError
            A file cannot be read.
        """
        # A caption has all of them, but a language only where the model has an answer.
        measure = next((name for name in self.names if name not in OF_LANGUAGE), self.names[0])
        columns = [self.prefix + name for name in dict.fromkeys([measure, "language"]) if name in self.names]

        def count(path: str) -> tuple[int, int, list[dict[str, Any]]]:
            table = read_rows(path, options, columns)
            named = table.column(columns[-1]).drop_null() if "language" in self.names else []
            found = pc.value_counts(named).to_pylist() if len(named) else []
            return table.num_rows, table.num_rows - table.column(0).null_count, found

        every = in_threads(count, paths)
        said = {"rows": sum(each[0] for each in every), "with_caption": sum(each[1] for each in every)}
        if "language" not in self.names:
            return said
        languages = Counter[str]()
        for _, _, counts in every:
            languages.update({each["values"]: each["counts"] for each in counts})
        return {**said, "languages": dict(languages.most_common())}

    def step(self) -> MeasureTexts:
        """What is done to the rows of a shard."""
        asked = any(name in OF_LANGUAGE for name in self.names)
        model = LanguageSpec.of(self.language_model) if asked else None
        return MeasureTexts(tuple(self.names), self.text, self.prefix, model)

    def _check(self, schema: pa.Schema, parquet: Iterator[str | None], id_col: str, options: Options) -> None:
        if self.text not in schema.names:
            raise DatasetError(
                f"text={self.text!r}: {none_of_these(self.text, schema.names)}. Give the name of the captions' column"
                " (text, --text)"
            )
        check_captions(self.text, schema.field(self.text).type)
        there = [name for name in self.columns if name in schema.names]
        path = next((path for path in parquet if path is not None), None) if there else None
        record = None if path is None else read_record(path, options)
        own = [name for name in there if record is None or TEXTS not in record.scores.get(name, {})]
        self._refuse({*own, *({id_col, URL_COLUMN} & {*self.columns})})

    def _refuse(self, own: Collection[str]) -> None:
        if own:
            raise ConfigError(
                f"the dataset has columns of its own named {sorted(own)}, which would be lost: give the statistics of"
                " captions other names (prefix='caption_', --text-prefix caption_, in a recipe prefix: caption_), or"
                " leave these out"
            )

    def __repr__(self) -> str:
        return f"TextStatistics({self.names!r}, {self.text!r}, prefix={self.prefix!r})"


@dataclass(frozen=True)
class MeasureTexts(RowStep):
    """The step of `TextStatistics`, with its settings.

    Attributes
    ----------
    names, text_column, prefix
        See `TextStatistics`.
    model
        Says the language; None: it is not asked for.
    """

    names: tuple[str, ...]
    text_column: str
    prefix: str
    model: LanguageSpec | None
    given_up: str | None = None

    label = "text statistics"
    may_kill = False
    needs = frozenset({"rows"})

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The statistics: a caption is at fault for none of them, so there are no reasons."""
        return {self.prefix + name: EVERY_TEXT[name] for name in self.names}

    @property
    def recipe(self) -> tuple[Any, ...]:
        """Which, and of what; the model by its content."""
        return ("text statistics", self.prefix, *(self._made(name) for name in self.names))

    def _made(self, name: str) -> tuple[Any, ...]:
        model = self.model.digest if self.model is not None and name in OF_LANGUAGE else ""
        return (name, 1, self.text_column, model)

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """By column, what the record of a file says of it."""
        said = {}
        for name in self.names:
            by = {"unicode": unicodedata.unidata_version}
            if self.model is not None and name in OF_LANGUAGE:
                by = {"model": self.model.name, "sha256": self.model.digest, "runtime": runtime_version()}
            said[self.prefix + name] = {
                "head": " ".join([name, "of captions", *([by["model"]] if "model" in by else [])]),
                TEXTS: self.text_column,
                "recipe": fingerprint({"recipe": self._made(name)}),
                "by": by,
            }
        return said

    def describe(self) -> dict[str, dict[str, Any]]:
        """Load the model, if any; of vectors it makes none."""
        with self._leased():
            return {}

    @contextmanager
    def begin(self, rows: Rows) -> Iterator[Work]:
        """Measure the captions of some rows."""
        if not len(rows):
            yield Known(Made.of_no_rows(self.columns))
            return
        with self._leased() as model:
            yield _Measuring(self, rows, model)

    def _leased(self) -> Any:
        return nullcontext() if self.model is None else LANGUAGES.lease(self.model, self.model.build)


class _Measuring(Work):
    """The statistics of the rows of one partition."""

    def __init__(self, step: MeasureTexts, rows: Rows, model: LanguageModel | None) -> None:
        self._step, self._rows, self._model = step, rows, model

    def finish(self) -> Made:
        """The columns, null where there is no caption."""
        step = self._step
        texts: list[str | None] = [None] * len(self._rows)
        found = Captions.of(self._rows, step.text_column)
        for row, text in zip(reversed(found.rows), reversed(found.texts), strict=True):
            texts[row] = text  # the first of a row is the last to be put there
        measures = {**MEASURES, **PERSONAL_MEASURES}
        made: dict[str, list[Any]] = {
            name: [None if text is None else measures[name](text) for text in texts]
            for name in step.names
            if name not in OF_LANGUAGE
        }
        if self._model is not None:
            pairs = [None if text is None else self._model.find(text) for text in texts]
            for number, name in enumerate(OF_LANGUAGE):
                made[name] = [None if pair is None else pair[number] for pair in pairs]
        return Made({step.prefix + name: pa.array(made[name], EVERY_TEXT[name]) for name in step.names})
