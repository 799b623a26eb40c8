"""Statistics of captions, a balance of them, and the negative CLIP loss, as a recipe gives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curator_dask.arguments import check_names, make_of
from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError
from curator_dask.frames.names import CAPTION_COLUMN, EMBEDDING_COLUMN
from curator_dask.text.embedders import make_text_embedder
from curator_dask.text.neg_clip_loss import NegClipLoss
from curator_dask.text.same import SameCaptions
from curator_dask.text.statistics import TextStatistics

#: What scores rows once all of them are there.
OfAllRows = SameCaptions | NegClipLoss

_TYPES = {str: "text", int: "a whole number", bool: "true or false"}
#: Arguments of a balance that a recipe gives, and their types.
BALANCE: dict[str, type] = {
    "concepts": str,
    "most": int,
    "text_column": str,
    "concept_column": str,
    "match_case": bool,
    "keep_unmatched": bool,
    "seed": int,
    "prefix": str,
}


def text_statistics_of(given: Any) -> list[TextStatistics]:
    """What measures captions.

    Parameters
    ----------
    given
        Names of statistics; or arguments of `TextStatistics`, or a list of such arguments. Of none there are none.

    Raises
    ------
    ConfigError
        It is nothing of these, or two make one column.
    """
    every: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    if every in ([], [None]):
        return []
    if all(isinstance(each, Mapping) for each in every):
        found = [make_of("text_statistics", TextStatistics, each) for each in every]
    elif not isinstance(given, str) and all(isinstance(each, str) for each in every):
        found = [TextStatistics(every)]
    else:
        raise ConfigError(
            f"text_statistics={given!r}: expected a list of names, or {{names: [words], text: COLUMN}}, or a list of"
            " several of these"
        )
    columns = [column for each in found for column in each.columns]
    if len(columns) > len({*columns}):
        twice = next(name for at, name in enumerate(columns) if name in columns[:at])
        raise ConfigError(
            f"text_statistics: two would make {twice!r}: give one a prefix of its own, as prefix: new_"
        )
    return found


def neg_clip_loss_of(given: Any, model: str | None, options: Mapping[str, Any]) -> NegClipLoss | None:
    """What scores pairs against others; None where it is not asked for.

    Parameters
    ----------
    given
        True, or arguments of `NegClipLoss`, with ``model``, ``model_dir`` and ``text_column`` in the place of ``text``.
    model, options
        What embeds the images, and its arguments: its other tower embeds the captions, unless another model is given.

    Raises
    ------
    ConfigError
        It is nothing of these, or there is no model.
    """
    if given is False:
        return None
    if given is not True and not isinstance(given, Mapping):
        raise ConfigError(
            f"neg_clip_loss={given!r}: expected true, or names and values, such as {{batches: 10}}"
        )
    arguments: dict[str, Any] = {} if given is True else dict(given)
    if "text" in arguments:
        raise ConfigError("neg_clip_loss: text is not given there, but model, model_dir and text_column")
    named = arguments.pop("model", model)
    folder = arguments.pop("model_dir", options.get("model_dir") if named == model else None)
    column = arguments.pop("text_column", CAPTION_COLUMN)
    if model is None or not isinstance(named, str):
        raise ConfigError(
            "neg_clip_loss: needs vectors of images: give a model, transformers' CLIP or SigLIP"
        )
    arguments.setdefault("image_embedding_column", options.get("image_embedding_column", EMBEDDING_COLUMN))
    text = make_text_embedder(named, folder, text_column=column)
    return make_of("neg_clip_loss", NegClipLoss, {**arguments, "text": text})


def of_all_rows(
    same_captions: Any, neg_clip_loss: Any, model: str | None, options: Mapping[str, Any]
) -> dict[str, tuple[OfAllRows, str]]:
    """By name, what scores rows once all are there, and the column of captions that it is of.

    Parameters
    ----------
    same_captions
        True, or arguments of `SameCaptions`.
    neg_clip_loss, model, options
        See `neg_clip_loss_of`.
    """
    found: dict[str, tuple[OfAllRows, str]] = {}
    if same_captions is not False:
        given = {} if same_captions is True else same_captions
        same = make_of("same_captions", SameCaptions, given)
        found["same_captions"] = (same, same.text)
    pairs = neg_clip_loss_of(neg_clip_loss, model, options)
    if pairs is not None and pairs.text is not None:
        found["neg_clip_loss"] = (pairs, pairs.text.text_column)
    return found


def check_balance(balance: Any) -> None:
    """Raise ConfigError where the arguments of a balance are others than it takes, or lack one."""
    if balance is None:
        return
    if not isinstance(balance, Mapping):
        raise ConfigError(f"balance: expected {{concepts: FILE, most: ROWS}}, found {balance!r}")
    check_names("balance", balance, BALANCE)
    if lacking := [name for name in ("concepts", "most") if balance.get(name) is None]:
        raise ConfigError(
            f"balance: expected concepts, a file, and most, a number of rows; {' and '.join(lacking)} is not given"
        )
    for name, value in balance.items():
        wanted = (str, Path) if name == "concepts" else BALANCE[name]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise ConfigError(f"balance: {name}={value!r}: expected {_TYPES[BALANCE[name]]}")
    check_counts(most=balance["most"])
