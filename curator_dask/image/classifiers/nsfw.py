"""`NsfwClassifier`: whether an image is not safe for work, by LAION's detector."""

from __future__ import annotations

import os

from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.image.classifiers.published import PublishedClassifier
from curator_dask.models.families import OPENAI_L14, VectorKind
from curator_dask.models.head_files import NSFW, PackedHead


class NsfwClassifier(PublishedClassifier):
    """Scores vectors of OpenAI's CLIP ViT-L/14 with LAION's NSFW detector; 0 to 1, 1 is not safe for work.

    Parameters
    ----------
    embedding_column, pred_column, batch_size, check
        See `ImageClassifier`.
    model_path
        The head, as ``.pth`` or ``.safetensors``. None: LAION's, which is fetched into ``CURATOR_DASK_HOME`` once a
        node, if NeMo Curator 0.9 does not have it there.
    """

    forms = frozenset({"nsfw"})

    def __init__(
        self,
        embedding_column: str = EMBEDDING_COLUMN,
        pred_column: str = "nsfw_score",
        batch_size: int = -1,
        model_path: str | os.PathLike[str] | None = None,
        *,
        check: bool = True,
    ) -> None:
        super().__init__(model_path, pred_column, embedding_column, batch_size, check=check)

    @property
    def published(self) -> PackedHead:
        """LAION's detector."""
        return NSFW

    @property
    def vectors(self) -> VectorKind:
        """Those of ViT-L/14."""
        return OPENAI_L14
