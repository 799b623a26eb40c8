"""Scorers made again from what the record of a file says of its scores: for rows that are tried again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curator_dask.image.classifiers import (
    AestheticClassifier,
    ClusterDistance,
    ClusterNumber,
    HeadClassifier,
    NsfwClassifier,
    ReferenceSimilarity,
)
from curator_dask.image.classifiers.files import Scorer
from curator_dask.text.embedders import ClipTextEmbedder, SentenceEmbedder, TextEmbedder
from curator_dask.text.score import ClipScore
from curator_dask.text.zero_shot import ZeroShotClassifier

_SCORERS = (
    AestheticClassifier,
    ClipScore,
    ClusterDistance,
    ClusterNumber,
    HeadClassifier,
    NsfwClassifier,
    ReferenceSimilarity,
    ZeroShotClassifier,
)
_TEXTS = (ClipTextEmbedder, SentenceEmbedder)


def scorer_from(settings: Mapping[str, Any]) -> Scorer | None:
    """Make the scorer again that settings are of; None if this version, or this package, has none of that name.

    Parameters
    ----------
    settings
        Its arguments, and the class's name under ``"scorer"``.

    Raises
    ------
    CuratorError
        Its files are not there any more.
    """
    arguments = dict(settings)
    kinds: dict[str, Any] = {kind.__name__: kind for kind in _SCORERS}
    kind = kinds.get(arguments.pop("scorer", ""))
    if kind is None:
        return None
    if arguments.get("text") is not None:
        arguments["text"] = _text_embedder(arguments["text"])
        if arguments["text"] is None:
            return None
    scorer: Scorer = kind(**arguments)
    return scorer


def _text_embedder(settings: Mapping[str, Any]) -> TextEmbedder | None:
    arguments = {name: value for name, value in settings.items() if name != "embedder" and value is not None}
    kinds: dict[str, Any] = {kind.__name__: kind for kind in _TEXTS}
    kind = kinds.get(settings["embedder"])
    embedder: TextEmbedder | None = None if kind is None else kind(**arguments)
    return embedder
