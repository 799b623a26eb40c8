"""`TextEmbedder`: adds a column of vectors of captions; `ClipTextEmbedder` does so with CLIP or SigLIP."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError, DatasetError
from curator_dask.frames.names import CAPTION_COLUMN, ERROR_COLUMN, URL_COLUMN
from curator_dask.models.clip_text import ClipTextSpec
from curator_dask.models.hub import CLIP_L14, names_folder
from curator_dask.models.sentences import SentenceSpec, is_sentences
from curator_dask.models.texts import LONG_TEXT, TextSpec
from curator_dask.settings import absolute
from curator_dask.text.partition import EmbedText
from curator_dask.words import some_of_these

#: The vectors of captions, unless another name is given.
TEXT_EMBEDDING_COLUMN = "text_embedding"


class TextEmbedder(ABC):
    """Base of the embedders of captions. Called with a dataset it adds their vectors, in the pass over the images.

    Parameters
    ----------
    model_name
        A folder, or a repository of the hub.
    model_dir
        Folder with the files of a repository, or for them.
    text_column
        Of the captions: text, or lists of text. Of several captions of a row the vector is the mean of theirs.
    text_embedding_column
        Name of the new column, float32 vectors.
    normalize_embeddings
        Divide each vector by its L2 norm.
    long_text
        Of a text that is longer than the model takes: ``"truncate"`` as its tokenizer does; ``"mean"`` or ``"max"``, by
        value, of the vectors of its pieces. In each case such texts are counted.
    batch_size
        Texts a forward pass, at most.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str],
        model_dir: str | os.PathLike[str] | None = None,
        *,
        text_column: str = CAPTION_COLUMN,
        text_embedding_column: str = TEXT_EMBEDDING_COLUMN,
        normalize_embeddings: bool = True,
        long_text: str = "truncate",
        batch_size: int = 64,
    ) -> None:
        if not isinstance(model_name, str | os.PathLike) or not os.fspath(model_name):
            raise ConfigError(f"model_name={model_name!r}: expected a folder, or a repository as org/repo")
        if not text_embedding_column or text_embedding_column in (URL_COLUMN, ERROR_COLUMN, text_column):
            raise ConfigError(f"text_embedding_column={text_embedding_column!r}: this name is not free")
        if long_text not in LONG_TEXT:
            raise ConfigError(f"long_text={long_text!r}: expected one of {', '.join(LONG_TEXT)}")
        check_counts(batch_size=batch_size)
        name = os.fspath(model_name)
        is_folder = isinstance(model_name, os.PathLike) or names_folder(name)
        # A worker may have another working directory than the client.
        self.model_name = str(absolute(name)) if is_folder else name
        self.model_dir = None if model_dir is None else str(absolute(model_dir))
        self.text_column = text_column
        self.text_embedding_column = text_embedding_column
        self.normalize_embeddings = normalize_embeddings
        self.long_text = long_text
        self.batch_size = batch_size

    @abstractmethod
    def encoder_spec(self) -> TextSpec:
        """What builds the encoder on a worker; equal specs share one model there."""

    def __call__(self, dataset: ImageTextPairDataset) -> ImageTextPairDataset:
        """The dataset with the vectors and ``image_error`` as its last columns; nothing is computed yet.

        A row without a caption has no vector, and ``image_error`` says why.

        Raises
        ------
        DatasetError
            There is no such column of captions.
        """
        check_text_column(dataset, self.text_column)
        return dataset.apply(self.step(dataset.id_col))

    def settings(self) -> dict[str, Any]:
        """The arguments that make it again, JSON-able, and the class's name under ``"embedder"``."""
        return {"embedder": type(self).__name__, **vars(self)}

    def step(self, id_col: str) -> EmbedText:
        """What is done to the rows of a shard."""
        return EmbedText(
            self.encoder_spec(), id_col, self.text_column, self.text_embedding_column, self.batch_size
        )

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class ClipTextEmbedder(TextEmbedder):
    """Embeds captions with the text tower of a CLIP or SigLIP: vectors in the space of `ClipImageEmbedder`'s.

    Texts are tokenized, padded and masked as the tower was trained; it computes in float32.

    Parameters
    ----------
    model_name
        A folder with ``config.json``, ``model.safetensors`` and the tokenizer's files as transformers writes them, or a
        repository of the hub. Default: OpenAI's CLIP ViT-L/14.
    model_dir, **options
        See `TextEmbedder`.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] = CLIP_L14,
        model_dir: str | os.PathLike[str] | None = None,
        *,
        text_column: str = CAPTION_COLUMN,
        text_embedding_column: str = TEXT_EMBEDDING_COLUMN,
        normalize_embeddings: bool = True,
        long_text: str = "truncate",
        batch_size: int = 64,
    ) -> None:
        super().__init__(
            model_name,
            model_dir,
            text_column=text_column,
            text_embedding_column=text_embedding_column,
            normalize_embeddings=normalize_embeddings,
            long_text=long_text,
            batch_size=batch_size,
        )

    def encoder_spec(self) -> ClipTextSpec:
        """Model and weights; the tokenizer follows from them on the worker."""
        return ClipTextSpec(
            self.model_name,
            self.model_dir,
            normalize=self.normalize_embeddings,
            long_text=self.long_text,
        )


class SentenceEmbedder(TextEmbedder):
    """Embeds captions with a model of sentence-transformers: vectors that are near where meanings are.

    Pooling, prompt and normalisation are those that the folder states; it computes in float32.

    Parameters
    ----------
    model_name
        A folder as sentence-transformers writes it: ``modules.json``, with a transformer and mean or CLS pooling.
    **options
        See `TextEmbedder`; `normalize_embeddings` is that of the folder, unless given.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str],
        *,
        text_column: str = CAPTION_COLUMN,
        text_embedding_column: str = TEXT_EMBEDDING_COLUMN,
        normalize_embeddings: bool = False,
        long_text: str = "truncate",
        batch_size: int = 64,
    ) -> None:
        super().__init__(
            Path(model_name) if model_name else "",
            text_column=text_column,
            text_embedding_column=text_embedding_column,
            normalize_embeddings=normalize_embeddings,
            long_text=long_text,
            batch_size=batch_size,
        )

    def encoder_spec(self) -> SentenceSpec:
        """The folder; the tokenizer follows from it on the worker."""
        return SentenceSpec(self.model_name, normalize=self.normalize_embeddings, long_text=self.long_text)


def make_text_embedder(
    model: str, model_dir: str | None = None, *, text_column: str = CAPTION_COLUMN
) -> TextEmbedder:
    """Make the embedder that a model's name means: `SentenceEmbedder` for a folder with ``modules.json``."""
    if model.startswith(("local-dir:", "hf-hub:")):
        raise ConfigError(
            f"--model {model} is timm's, which has no tower for texts. Give transformers' CLIP or SigLIP of the same"
            " weights: its folder, without a prefix, or org/repo. Without one, --like KEY and --image FILE find images"
            " by an image"
        )
    if names_folder(model) and is_sentences(absolute(model)):
        return SentenceEmbedder(Path(model), text_column=text_column)
    return ClipTextEmbedder(model, model_dir, text_column=text_column)


def check_text_column(dataset: ImageTextPairDataset, column: str) -> None:
    """Raise DatasetError where a dataset has no such column."""
    if column not in dataset.metadata.columns:
        raise DatasetError(
            f"text_column={column!r}: the metadata has no such column, "
            f"it has {some_of_these(dataset.metadata.columns, column)}: give"
            " the name of the captions'"
        )
