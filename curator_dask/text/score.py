"""`ClipScore`: how well an image and its caption fit, the cosine of their vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError
from curator_dask.frames.names import EMBEDDING_COLUMN, ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers.origins import Origin, find_origin, one_origin
from curator_dask.runs.step import types_of
from curator_dask.storage import Options
from curator_dask.text.captions import check_captions, is_list
from curator_dask.text.embedders import TEXT_EMBEDDING_COLUMN, TextEmbedder, check_text_column
from curator_dask.text.pairs import ScorePairs


class ClipScore:
    """Adds the cosine of an image's vector and its caption's: from -1 to 1, neither scaled nor clamped.

    (CLIPScore as published is 2.5 times this, and not below 0; other programs say 100 times.) The score is null where
    either vector is.

    Parameters
    ----------
    text
        Embeds the captions for the score alone, and keeps no vectors of them. Of several captions of a row (a column of
        lists) the score is that of the best, and the mean of all is a further column. None: the vectors of captions are
        in a column.
    image_embedding_column, text_embedding_column
        Of the vectors; the second is used without `text` only.
    pred_column
        Name of the new column. That of the mean has ``_mean`` behind it.
    check
        Refuse vectors that do not belong together: the tower beside the text's must have made the images'. False is for
        those of which you know better; it is recorded.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    def __init__(
        self,
        text: TextEmbedder | None = None,
        *,
        image_embedding_column: str = EMBEDDING_COLUMN,
        text_embedding_column: str = TEXT_EMBEDDING_COLUMN,
        pred_column: str = "clip_score",
        check: bool = True,
    ) -> None:
        if text is not None and not isinstance(text, TextEmbedder):
            raise ConfigError(
                f"text={text!r}: expected a TextEmbedder, such as ClipTextEmbedder(model), or None"
            )
        taken = (URL_COLUMN, ERROR_COLUMN, image_embedding_column, text_embedding_column)
        if not pred_column or pred_column in taken:
            raise ConfigError(f"pred_column={pred_column!r}: this name is not free")
        self.text = text
        self.image_embedding_column = image_embedding_column
        self.text_embedding_column = text_embedding_column
        self.pred_column = pred_column
        self.check = check

    def __call__(self, dataset: ImageTextPairDataset) -> ImageTextPairDataset:
        """The dataset with the score; nothing is computed yet.

        Raises
        ------
        DatasetError
            The dataset lacks vectors or captions, and nothing makes them.
        """
        images = find_origin(dataset, self.image_embedding_column)
        if self.text is None:
            texts, kind = find_origin(dataset, self.text_embedding_column), None
        else:
            check_text_column(dataset, self.text.text_column)
            texts, kind = None, types_of(dataset.metadata._meta).field(self.text.text_column).type
        return dataset.apply(self.step(images, texts, kind, dataset.id_col))

    def of_files(self, records: Mapping[str, FileRecord | None], options: Options = None) -> ScorePairs:
        """The step for the vectors, and the captions, of files.

        Parameters
        ----------
        records
            What made the files, by path.
        options
            For fsspec.
        """
        images = one_origin(self.image_embedding_column, records)
        if self.text is None:
            return self.step(images, one_origin(self.text_embedding_column, records), None, "key")
        path, record = next(iter(records.items()))
        with open_parquet(path, options) as file:
            schema = file.schema_arrow
        names = schema.names  # one that is not there is named when all files have been looked at
        column = self.text.text_column
        kind = schema.field(column).type if column in names else pa.string()
        return self.step(images, None, kind, (record and record.id_col) or "key")

    def step(self, images: Origin, texts: Origin | None, kind: pa.DataType | None, id_col: str) -> ScorePairs:
        """What is done to the rows of a shard.

        Parameters
        ----------
        images, texts
            What made the vectors; no `texts` where the score's own embedder makes them.
        kind
            Type of the captions that this embedder takes.
        id_col
            Column of the keys.
        """
        embed = None if self.text is None else self.text.step(id_col)
        if kind is not None and embed is not None:
            check_captions(embed.text_column, kind)
        return ScorePairs.of(
            self.pred_column,
            images,
            texts,
            embed,
            several=kind is not None and is_list(kind),
            check=self.check,
            settings=self.settings(),
        )

    def settings(self) -> dict[str, Any]:
        """The arguments that make it again, JSON-able, and the class's name under ``"scorer"``."""
        text = None if self.text is None else self.text.settings()
        return {"scorer": type(self).__name__, **vars(self), "text": text}

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"
