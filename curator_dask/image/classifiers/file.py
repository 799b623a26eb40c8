"""`HeadClassifier`: scores vectors with a head from a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dask.errors import WeightsError
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.image.classifiers.base import ImageClassifier
from curator_dask.models.families import Kind, LikeThose
from curator_dask.models.heads import Head, digest_of, load_head
from curator_dask.settings import absolute

if TYPE_CHECKING:
    import torch


class HeadClassifier(ImageClassifier):
    """Scores vectors with a head from a file, whose form is known by its tensors.

    Parameters
    ----------
    model_path
        ``.safetensors``, or a PyTorch file that is safe to load, with a linear head (``weight`` [1, dim], ``bias``
        [1]), LAION's aesthetic MLP or LAION's NSFW head. The client and every worker must see it. One that
        ``curator-dask fit`` wrote says for which model's vectors it is, and others are refused.
    embedding_column, pred_column, batch_size, check
        See `ImageClassifier`.
    """

    #: Of `curator_dask.models.heads`, those that this class is for.
    forms = frozenset({"aesthetic", "linear", "logistic", "nsfw"})

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        pred_column: str,
        embedding_column: str = EMBEDDING_COLUMN,
        batch_size: int = -1,
        *,
        check: bool = True,
    ) -> None:
        name = f"{type(self).__name__}({Path(model_path).name})"
        super().__init__(name, embedding_column, pred_column, "float32", batch_size, check=check)
        self.model_path: str | None = str(absolute(model_path))

    def locate(self) -> Path:
        """The file, on this machine."""
        assert self.model_path is not None
        return Path(self.model_path)

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of the file, by its path."""
        path = str(self.locate())
        return {path: digest_of(path)}

    @property
    def identity(self) -> tuple[Any, ...]:
        """The content of the file, wherever it is."""
        return ("head", *self.files.values())

    @property
    def vectors(self) -> Kind | None:
        """Those that the file says it was fitted to; None: it does not say."""
        info = self.load().vectors
        return None if info is None else LikeThose(str(self.locate()), json.dumps(dict(info), sort_keys=True))

    def settings(self) -> dict[str, Any]:
        """The arguments of this class, and its name under ``"scorer"``."""
        names = ("model_path", "pred_column", "embedding_column", "batch_size", "check")
        return {"scorer": type(self).__name__, **{name: getattr(self, name) for name in names}}

    def load(self) -> Head:
        """The head, on the CPU.

        Raises
        ------
        WeightsError
            The file cannot be read, or holds a head that this class is not for.
        """
        path = self.locate()
        head = load_head(path)
        if head.form not in self.forms:
            raise WeightsError(
                f"{path}: is a head of the form {head.form!r}; {type(self).__name__} is for {sorted(self.forms)}. Give"
                " another file, or HeadClassifier for any"
            )
        return head

    def load_model(self, device: torch.device) -> Head:
        """The head, on `device`."""
        return self.load().to(device)
