"""Filters that are known by name, as plain text for `ImageTextPairDataset.filter`: read them, and combine them by AND.

They name the columns ``caption``, ``width``, ``height`` (`ImageStatistics`), ``text_words``, ``text_characters`` and
``text_language`` (`TextStatistics`), and ``clip_score`` (the plain cosine).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from curator_dask.errors import ConfigError

#: Gadre et al. 2023, "DataComp", basic filtering, without its choice of English captions: more than two words and five
#: characters; the shorter side is at least 200 pixels, and the longer at most three times as long.
DATACOMP_BASIC = (
    r"length(caption) > 5 and len(regexp_extract_all(caption, '\S+')) > 2"
    " and width >= 200 and height >= 200 and width <= 3 * height and height <= 3 * width"
)

#: The whole of it: the same, and fastText takes the caption for English (mlfoundations/datacomp,
#: ``load_uids_with_basic_filter``).
DATACOMP_BASIC_ENGLISH = (
    "text_words > 2 and text_characters > 5 and text_language = 'en'"
    " and width >= 200 and height >= 200 and width <= 3 * height and height <= 3 * width"
)

#: Schuhmann et al. 2022, "LAION-5B": the cosine of image and English caption by OpenAI's ViT-B/32, and by no other.
LAION_B32 = "clip_score >= 0.28"

#: By the names of ``curator-dask filter --preset``.
PRESETS: Mapping[str, str] = {
    "datacomp-basic": DATACOMP_BASIC,
    "datacomp-basic-english": DATACOMP_BASIC_ENGLISH,
    "laion-b32": LAION_B32,
}


def all_of(conditions: Sequence[str]) -> str | None:
    """A condition that holds where all of these do; a single one as it is, and None of none."""
    if len(conditions) < 2:
        return next(iter(conditions), None)
    return " AND ".join(f"({each}\n)" for each in conditions)  # a comment ends with its line


def and_also(condition: str, asked: str) -> str:
    """A condition that holds where one of ours holds and one that was asked for."""
    end = "\n" if "--" in asked else ""  # a comment ends with its line; the text decides what is finished
    return f"{condition} AND ({asked}{end})"


def asked_for(preset: Any, where: str | None) -> str | None:
    """The condition of a recipe: a name of `PRESETS` or a list of some, and a condition besides; None of nothing.

    Raises
    ------
    ConfigError
        There is no such preset.
    """
    names = [preset] if isinstance(preset, str) else preset
    if not isinstance(names, list | tuple) or any(name not in [*PRESETS] for name in names):
        raise ConfigError(f"preset={preset!r}: expected one of {', '.join(PRESETS)}, or a list of some")
    return all_of([*(PRESETS[name] for name in names), *([] if where is None else [where])])
