"""`AestheticClassifier`: how pleasing an image is, by LAION's predictors."""

from __future__ import annotations

import os

from curator_dask.errors import WeightsError
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.image.classifiers.published import PublishedClassifier
from curator_dask.models.downloads import HubFile
from curator_dask.models.families import OPENAI_B32, OPENAI_L14, VectorKind
from curator_dask.models.head_files import AESTHETIC

_BY_LENGTH = {kind.dim: kind for kind in (OPENAI_L14, OPENAI_B32)}


class AestheticClassifier(PublishedClassifier):
    """Scores vectors of OpenAI's CLIP with LAION's aesthetic predictors; about 1 to 10, more is more pleasing.

    Parameters
    ----------
    embedding_column, pred_column, batch_size, check
        See `ImageClassifier`.
    model_path
        The improved predictor (768 values, ViT-L/14), or one of the first, linear ones (768 values, or 512 of
        ViT-B/32): ``.pth`` or ``.safetensors``. None: the improved one, which is fetched into
        ``CURATOR_DASK_HOME`` once a node.
    """

    forms = frozenset({"aesthetic", "linear"})

    def __init__(
        self,
        embedding_column: str = EMBEDDING_COLUMN,
        pred_column: str = "aesthetic_score",
        batch_size: int = -1,
        model_path: str | os.PathLike[str] | None = None,
        *,
        check: bool = True,
    ) -> None:
        super().__init__(model_path, pred_column, embedding_column, batch_size, check=check)

    @property
    def published(self) -> HubFile:
        """LAION's improved predictor."""
        return AESTHETIC

    @property
    def vectors(self) -> VectorKind:
        """Those of ViT-L/14, or of ViT-B/32, by the length that the head takes."""
        head = self.load()
        if head.dim not in _BY_LENGTH:
            raise WeightsError(
                f"{self.locate()}: is for vectors of {head.dim} values; those of LAION are for"
                f" {' or '.join(map(str, _BY_LENGTH))}. For a head of another model take HeadClassifier"
            )
        return _BY_LENGTH[head.dim]
