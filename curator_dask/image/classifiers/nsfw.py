"""`NsfwClassifier`: whether an image is not safe for work, by LAION's detector."""

from __future__ import annotations

import os
from pathlib import Path

from curator_dask.errors import WeightsError
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.image.classifiers.file import HeadClassifier
from curator_dask.models.families import OPENAI_L14, VectorKind
from curator_dask.models.head_files import NSFW_NAME, NSFW_SOURCE, places


class NsfwClassifier(HeadClassifier):
    """Scores vectors of OpenAI's CLIP ViT-L/14 with LAION's NSFW detector; 0 to 1, 1 is not safe for work.

    Parameters
    ----------
    embedding_column, pred_column, batch_size, check
        See `ImageClassifier`.
    model_path
        The head, as ``.pth`` or ``.safetensors``. None: ``clip_autokeras_binary_nsfw.pth`` in ``CURATOR_DASK_HOME``,
        or where NeMo Curator 0.9 has it; it is not fetched.
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
        super().__init__(model_path or _find(), pred_column, embedding_column, batch_size, check=check)

    @property
    def vectors(self) -> VectorKind:
        """Those of ViT-L/14."""
        return OPENAI_L14


def _find() -> Path:
    """The head on this machine."""
    paths = places(NSFW_NAME)
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise WeightsError(
            f"{NSFW_NAME}: is not in {' or '.join(str(path.parent) for path in paths)}, and is not fetched, since no"
            f" digest of it is known. Get it out of {NSFW_SOURCE} into {paths[0].parent}, on every node, or give its"
            " path as model_path (--nsfw)"
        )
    return found
