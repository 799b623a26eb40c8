"""`NegClipLoss`: how well an image and its caption fit, less how well each fits what belongs to others."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.names import EMBEDDING_COLUMN, ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import read_footer
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers.origins import one_origin
from curator_dask.rows.best import is_number
from curator_dask.storage import Options
from curator_dask.text.contrast import SUFFIX, Source, draw_batches
from curator_dask.text.contrasting import ContrastPairs
from curator_dask.text.embedders import TEXT_EMBEDDING_COLUMN, TextEmbedder
from curator_dask.text.same import beside, shared_folder
from curator_dask.threads import in_threads

#: Of a temperature: what cosines of float32 are told apart by.
_LEAST = 1e-6


class NegClipLoss:
    """Adds the negative CLIP loss of each pair, negCLIPLoss (Wang et al., NeurIPS 2024, arXiv 2405.19547, section 3.1).

    It is the CLIP score less a term R, which is large where the image is like many texts, or the text like many images:
    with unit vectors `v` and `l` of images and texts, a temperature `t`, and `K` batches `B` of rows that are drawn at
    random from the whole output, each of which has the row itself, once::

        s = v_i . l_i  -  t / (2 K) * sum over B of (log sum over j in B of exp(v_i . l_j / t)
                                                     + log sum over j in B of exp(v_j . l_i / t))

    So a general caption ("image", a shop's name) has a lower one than a caption that says what is in this image and in
    no other, though their cosines are equal. It is never above 0; more is better. The paper divides all rows into
    batches at random, and averages over K such divisions; here each of K batches serves all rows, so that workers need
    one at a time, and a row's batch has one row more where the row is not of it.

    The column is float32, and null where either vector is. Batches go into a folder beside the output,
    ``OUTPUT.contrast``, which workers must see: 8 bytes a row of a batch and value of a vector. Where rows come or go
    the scores of all may be others; the same call again makes them anew. It goes to
    `curator_dask.image.classifiers.score_output`.

    Parameters
    ----------
    text
        Embeds the captions, of rows and batches, where a file has no column `text_embedding_column`. Of several
        captions of a row it takes the mean of their vectors, as that column has it. None: all files must have it.
    image_embedding_column, text_embedding_column
        Of the vectors.
    pred_column
        Name of the new column.
    temperature
        That of the model: 1 / its logit scale; of OpenAI's CLIP 0.01.
    batch_size, batches
        Rows of a batch (the paper's 32,768), and how many batches there are (10). Of an output that has no more rows
        than a batch all are in one.
    seed
        Of the draw, which goes by rows' keys and the names of their shards besides.
    check
        Refuse vectors that do not belong together, as `ClipScore` does.

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
        pred_column: str = "neg_clip_loss",
        temperature: float = 0.01,
        batch_size: int = 32_768,
        batches: int = 10,
        seed: int = 0,
        check: bool = True,
    ) -> None:
        if text is not None and not isinstance(text, TextEmbedder):
            raise ConfigError(
                f"text={text!r}: expected a TextEmbedder, such as ClipTextEmbedder(model), or None"
            )
        taken = (URL_COLUMN, ERROR_COLUMN, image_embedding_column, text_embedding_column)
        if not pred_column or pred_column in taken:
            raise ConfigError(f"pred_column={pred_column!r}: this name is not free")
        if not is_number(temperature) or not _LEAST <= temperature <= 1 / _LEAST:
            raise ConfigError(
                f"temperature={temperature!r}: expected a number from {_LEAST:g} to {1 / _LEAST:g}, such as 0.01"
            )
        check_counts(batch_size=batch_size, batches=batches)
        if not is_number(seed, numbers.Integral):
            raise ConfigError(f"seed={seed!r}: expected a whole number")
        self.text = text
        self.image_embedding_column = image_embedding_column
        self.text_embedding_column = text_embedding_column
        self.pred_column = pred_column
        self.temperature = float(temperature)
        self.batch_size = batch_size
        self.batches = batches
        self.seed = int(seed)
        self.check = check

    def look(self) -> None:
        """See that the files of what embeds the captions are there.

        Raises
        ------
        CuratorError
            They are not, or it has no tower for texts.
        """
        if self.text is not None:
            _ = self.text.encoder_spec().digests

    def of_files(self, records: Mapping[str, FileRecord | None], options: Options = None) -> ContrastPairs:
        """The step for the vectors, and the captions, of files, of which batches are drawn; `options` are for fsspec.

        Raises
        ------
        OutputError
            There are no such columns, or no row has both.
        """
        return self.of_files_to(records, options, shared_folder(list(records)), options)

    def of_files_to(
        self, records: Mapping[str, FileRecord | None], options: Options, folder: str, folder_options: Options
    ) -> ContrastPairs:
        """The same for files that go to a folder, beside which the batches are put; with its own options for fsspec."""
        paths = list(records)
        columns = dict(
            zip(paths, in_threads(lambda path: read_footer(path, options).columns, paths), strict=True)
        )
        embedded = all(self.text_embedding_column in names for names in columns.values())
        if not embedded and self.text is None:
            path = next(path for path, names in columns.items() if self.text_embedding_column not in names)
            raise OutputError(
                f"{path}: has no column {self.text_embedding_column!r} with vectors of captions; it has"
                f" {columns[path]}. Give what embeds them (NegClipLoss(ClipTextEmbedder(model)), --clip-score MODEL)"
            )
        texts = self.text_embedding_column if embedded or self.text is None else self.text.text_column
        for path, names in columns.items():
            if lacking := [name for name in (self.image_embedding_column, texts) if name not in names]:
                raise OutputError(
                    f"{path}: has no column {lacking[0]!r}; it has {names}. Give the name of it"
                )
        ids = {path: (record and record.id_col) or "key" for path, record in records.items()}
        id_col = next(iter(ids.values()))
        source = Source(ids, options, self.image_embedding_column, texts, embedded, self.seed)
        embed = None if embedded or self.text is None else self.text.step(id_col)
        return ContrastPairs(
            self.pred_column,
            one_origin(self.image_embedding_column, records),
            one_origin(texts, records) if embedded else None,
            embed,
            () if embed is None else tuple(embed.encoder.digests.items()),
            draw_batches(source, self.batch_size, self.batches, beside(folder, SUFFIX), folder_options),
            self.temperature,
            self.seed,
            f"temperature {self.temperature:g}, {self.batches} batches of {self.batch_size:,}, seed {self.seed}",
            id_col,
            self.check,
        )

    def __repr__(self) -> str:
        settings: dict[str, Any] = vars(self)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in settings.items())})"
