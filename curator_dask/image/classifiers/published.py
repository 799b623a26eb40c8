"""`PublishedClassifier`: a head from a file that is given, or the one that is published."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path

from curator_dask.image.classifiers.file import HeadClassifier
from curator_dask.models.downloads import HubFile
from curator_dask.models.head_files import PackedHead, find


class PublishedClassifier(HeadClassifier):
    """A `HeadClassifier` whose head is published: without a path it is looked for, and fetched once a node.

    Parameters
    ----------
    model_path
        The head, as ``.pth`` or ``.safetensors``. None: the one that is published, which is fetched into
        ``CURATOR_DASK_HOME`` once a node, unless it is there or where NeMo Curator 0.9 has it.
    pred_column, embedding_column, batch_size, check
        See `HeadClassifier`.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str] | None,
        pred_column: str,
        embedding_column: str,
        batch_size: int,
        *,
        check: bool,
    ) -> None:
        super().__init__(
            model_path or self.published.name, pred_column, embedding_column, batch_size, check=check
        )
        if model_path is None:
            self.model_path = None

    @property
    @abstractmethod
    def published(self) -> HubFile | PackedHead:
        """The head that is published."""

    def locate(self) -> Path:
        """The file on this machine; fetched if it is nowhere."""
        return find(self.published) if self.model_path is None else super().locate()

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of the file that was given, by its path; each node has its own of what is fetched."""
        return {} if self.model_path is None else super().files

    @property
    def identity(self) -> tuple[str, ...]:
        """The content of the file, or of the head that is published, wherever they are."""
        return ("head", str(self.published.digest)) if self.model_path is None else super().identity
