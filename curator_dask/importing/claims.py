"""What users say made vectors: a claim, which is kept as such in the record of each file."""

from __future__ import annotations

from typing import Any

from curator_dask.errors import ConfigError
from curator_dask.frames.record import CLAIMED
from curator_dask.models.families import OPENAI_B32, OPENAI_L14, VectorKind

#: Other names of models that are known here, in small letters: OpenAI's own, and open_clip's with its tag.
_NAMES: dict[str, VectorKind] = {
    name.lower(): kind
    for kind, names in (
        (OPENAI_L14, ("ViT-L/14", "ViT-L-14/openai", "ViT-L-14-quickgelu/openai")),
        (OPENAI_B32, ("ViT-B/32", "ViT-B-32/openai", "ViT-B-32-quickgelu/openai")),
    )
    for name in (kind.hub, kind.timm, f"hf-hub:timm/{kind.timm}", *names)
}


def claim(model: str | None, dim: int, normalized: bool, *, text: bool = False) -> dict[str, Any]:
    """What a record says of a column of vectors (`curator_dask.models.encoders.EncoderInfo`), by a user's word alone.

    Parameters
    ----------
    model
        As the user names it; None: nobody says. OpenAI's CLIP ViT-L/14 and ViT-B/32 are known by transformers', timm's,
        open_clip's and their own names, so what is for them takes the vectors. Others are as their name is written.
    dim
        Length of a vector.
    normalized
        Whether each has length 1.
    text
        They are of texts: those of images in the same space are the model's of the same name.

    Raises
    ------
    ConfigError
        The model's vectors have another length.
    """
    kind = None if model is None else _NAMES.get(model.strip().lower())
    if kind is not None and kind.dim != dim:
        raise ConfigError(
            f"model={model!r} (--model): makes vectors of {kind.dim} values, and these have {dim}: name the model that"
            " made them, or take others by --image-vectors, --text-vectors"
        )
    if kind is not None:
        architecture, source = kind.timm.partition(".")[0], f"hf-hub:timm/{kind.timm}"
    else:
        architecture = source = "not known" if model is None else model.strip()
    what: dict[str, Any] = {
        "model": architecture,
        "weights": CLAIMED,
        "output": "model" if model is None else "projected",
    }
    made = {**what, "source": source, "dim": dim, "normalized": normalized}
    made |= {} if model is None else {"claimed": model}
    return {**made, "images": what} if text and model is not None else made
