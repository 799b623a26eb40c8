"""What a user may say in a dataset's card: only what nothing in the data tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from curator_dask.arguments import check_names
from curator_dask.errors import ConfigError

#: Of these a list is expected, or text with commas between.
LISTS = ("task_categories", "language", "tags")
#: By name, what the card calls it. What starts so in the front matter is Hugging Face's.
FIELDS = ("pretty_name", "license", "source", *LISTS)


def check_card(card: Any) -> None:
    """Raise ConfigError where what a card is to say is not what it can."""
    if isinstance(card, bool):
        return
    if not isinstance(card, Mapping):
        raise ConfigError(f"card={card!r}: expected True, False, or what it says of {', '.join(FIELDS)}")
    check_names("card", card, FIELDS)
    for name, value in card.items():
        is_list = isinstance(value, list | tuple) and all(isinstance(each, str) and each for each in value)
        if not (isinstance(value, str) and value.strip(", \t\n" if name in LISTS else None)) and not (
            is_list and name in LISTS
        ):
            raise ConfigError(
                f"card: {name}={value!r}: expected text{', with commas between, or a list of it' * (name in LISTS)}"
            )


def said_in(card: bool | Mapping[str, Any]) -> dict[str, Any]:
    """What a user says, in the order of `FIELDS`; of `LISTS` lists."""
    given = {} if isinstance(card, bool) else card
    lists = {name: _parts(given[name]) for name in LISTS if name in given}
    return {name: lists.get(name, given[name]) for name in FIELDS if name in given}


def _parts(value: str | Sequence[str]) -> list[str]:
    """Each once; a text is parted at its commas."""
    parts = [each.strip() for each in value.split(",")] if isinstance(value, str) else value
    return list(dict.fromkeys(filter(None, parts)))
