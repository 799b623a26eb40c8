"""Stages that score images by their vectors and leave out those on the wrong side of a threshold."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError
from curator_dask.image.classifiers import AestheticClassifier, NsfwClassifier
from curator_dask.image.classifiers.origins import Origin
from curator_dask.models.encoders import EncoderInfo
from curator_dask.models.head_files import AESTHETIC, NSFW
from curator_dask.settings import absolute
from curator_dask.stages.base import Names, ProcessingStage
from curator_dask.tasks import EMBEDDING, ImageBatch

if TYPE_CHECKING:
    from curator_dask.models.heads import Head

logger = logging.getLogger("curator_dask")


class ScoreFilterStage(ProcessingStage[ImageBatch, ImageBatch]):
    """Base of the stages that score and filter; use one of those below.

    Every image with a vector gets its score, in its attribute and in a column of the file. Those that do not pass are
    left out, and counted. Images with an ``error`` pass through: their rows stay with the reason, so that a retry can
    mend them (``drop_failed`` of the writer puts them elsewhere).

    Parameters
    ----------
    model_dir
        The file of the head, or a folder that it is in, or below. None: as the classifier finds it.
    num_gpus_per_worker
        See `curator_dask.stages.base.Stage`.
    model_inference_batch_size
        Vectors that the head takes at once.
    score_threshold
        The score that decides.
    verbose
        Log how many images of each batch pass.
    check
        Refuse vectors that the head is not for.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    WeightsError
        The head is not there.
    """

    thread_safe = True
    #: The attribute that gets the score.
    score: str
    #: Files that hold the head, by their names.
    files: tuple[str, ...]
    #: What scores usually are.
    usual: tuple[float, float]
    #: Settings that do not decide what comes out.
    uncounted = frozenset({"model_dir", "model_inference_batch_size", "verbose"})

    def __init__(
        self,
        model_dir: str | os.PathLike[str] | None = None,
        num_gpus_per_worker: float = 0.25,
        model_inference_batch_size: int = 32,
        score_threshold: float = 0.5,
        verbose: bool = False,
        *,
        check: bool = True,
    ) -> None:
        check_counts(model_inference_batch_size=model_inference_batch_size)
        if isinstance(score_threshold, bool) or not isinstance(score_threshold, int | float):
            raise ConfigError(f"score_threshold={score_threshold!r}: expected a number")
        self.model_dir = None if model_dir is None else str(absolute(model_dir))
        self.num_gpus_per_worker = num_gpus_per_worker
        self.model_inference_batch_size = model_inference_batch_size
        self.score_threshold = float(score_threshold)
        self.verbose = verbose
        self.check = check
        self.head = self.classifier().identity
        self._loaded: Head | None = None
        low, high = self.usual
        if not low <= self.score_threshold <= high:
            logger.warning(
                "%s: score_threshold=%g is outside of what these scores usually are, %g to %g: it %s",
                type(self).__name__,
                self.score_threshold,
                low,
                high,
                "leaves none out" if self.passes(np.array([low, high])).all() else "leaves all out",
            )

    @abstractmethod
    def passes(self, scores: np.ndarray) -> np.ndarray:
        """Which scores pass; bool (n,)."""

    @abstractmethod
    def classifier(self) -> AestheticClassifier | NsfwClassifier:
        """The classifier of the dataset API, with the same head."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loaded": None}  # of a stage that was tried by hand

    def inputs(self) -> Names:
        """Images with their vectors."""
        return ["data"], [EMBEDDING]

    def outputs(self) -> Names:
        """The scores of those that pass."""
        return ["data"], [self.score]

    def check_vectors(self, info: EncoderInfo | None) -> None:
        """Refuse vectors that the head is not for; called before the first batch.

        Parameters
        ----------
        info
            What makes them; None: nothing is known.

        Raises
        ------
        ConfigError
            They are another model's.
        """
        if self.check:
            known = None if info is None else info.to_dict()
            Origin.of(EMBEDDING, known).check(self.classifier().vectors, type(self).__name__)

    def setup(self, worker_metadata: Any = None) -> None:
        """Load the head, once a worker."""
        self._loaded = self.classifier().load()

    def process(self, task: ImageBatch) -> ImageBatch:
        """Score the images, and leave out those that do not pass.

        Raises
        ------
        ConfigError
            Vectors are not as long as those that the head takes.
        """
        if self._loaded is None:
            self.setup()
        images = [image for image in task.data if image.error is None and image.embedding is not None]
        scores = self._scores([image.embedding for image in images])
        passing = self.passes(scores)
        left_out = set()
        for image, score, passes in zip(images, scores.tolist(), passing.tolist(), strict=True):
            setattr(image, self.score, score)
            if not passes:
                left_out.add(id(image))
        if self.verbose:
            logger.info("%s: %d of %d images pass %s", task.task_id, passing.sum(), len(images), self.name)
        task.data = [image for image in task.data if id(image) not in left_out]
        return task

    def teardown(self) -> None:
        """Let the head go."""
        self._loaded = None

    def _scores(self, vectors: Sequence[Any]) -> np.ndarray:
        import torch

        head = self._loaded
        assert head is not None
        if not vectors:
            return np.zeros(0, np.float32)
        matrix = np.stack(vectors).astype(np.float32, copy=False)
        if matrix.shape[1] != head.dim:
            raise ConfigError(
                f"{type(self).__name__}: the head takes vectors of {head.dim} values, found {matrix.shape[1]}: give the"
                " head of the model that embeds, or embed with the head's"
            )
        with torch.inference_mode():
            parts = torch.from_numpy(matrix).split(self.model_inference_batch_size)
            made = torch.cat([head(part).reshape(-1) for part in parts])
        scores: np.ndarray = made.numpy()
        return scores

    def _path(self) -> str | None:
        """The head's file in `model_dir`."""
        if self.model_dir is None:
            return None
        folder = Path(self.model_dir)
        if folder.is_dir():
            found = [path for name in self.files for path in sorted(folder.rglob(name))]
            if not found:
                raise ConfigError(
                    f"model_dir={self.model_dir!r}: expected {' or '.join(self.files)} in this folder or below it"
                )
            return str(found[0])
        return self.model_dir


class ImageAestheticFilterStage(ScoreFilterStage):
    """Keeps images with an aesthetic score of at least `score_threshold`.

    Scores are about 1 to 10: the default of NeMo Curator, 0.5, leaves none out. See `ScoreFilterStage` for the
    arguments, and `curator_dask.image.classifiers.AestheticClassifier` for the head.
    """

    name = "image_aesthetic_filter"
    score = "aesthetic_score"
    files = (AESTHETIC.name, "sa_0_4_vit_l_14_linear.pth", "model.safetensors")
    usual = (1.0, 10.0)

    def passes(self, scores: np.ndarray) -> np.ndarray:
        """At least the threshold."""
        kept: np.ndarray = scores >= self.score_threshold
        return kept

    def classifier(self) -> AestheticClassifier:
        """`AestheticClassifier`."""
        return AestheticClassifier(model_path=self._path())


class ImageNSFWFilterStage(ScoreFilterStage):
    """Keeps images with an NSFW score below `score_threshold`.

    Scores are 0 (safe) to 1. See `ScoreFilterStage` for the arguments, and
    `curator_dask.image.classifiers.NsfwClassifier` for the head.
    """

    name = "image_nsfw_filter"
    score = "nsfw_score"
    files = (NSFW.name, "nsfw_l14.safetensors", "model.safetensors")
    usual = (0.0, 1.0)

    def passes(self, scores: np.ndarray) -> np.ndarray:
        """Below the threshold."""
        kept: np.ndarray = scores < self.score_threshold
        return kept

    def classifier(self) -> NsfwClassifier:
        """`NsfwClassifier`."""
        return NsfwClassifier(model_path=self._path())
