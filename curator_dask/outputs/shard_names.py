"""Names of the files of an export: tars by their numbers, Parquet files as Hugging Face's datasets names them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

#: Suffixes of what an export writes into the folder, by the name of a shard.
PARTS = (".tar", ".idx", ".parquet")
#: Folder of Parquet files: there, and only there, datasets take any word for the name of a split.
TABLES = "data"
#: The one split where there are no others.
ONLY = "train"
_OF = re.compile(r"(?P<before>.*-)(?P<number>\d{5,})(?P<after>-of-\d{5,})")


def table_name(place: str, number: int, total: int, by_value: bool = False) -> str:
    """Of a Parquet file without its suffix: ``data/train-00000-of-00042``.

    The form is that of ``SPLIT_PATTERN_SHARDED`` in ``datasets.data_files``, and of ``Dataset.push_to_hub``.

    Parameters
    ----------
    place
        The split, empty where there are none; `by_value`: the folder of a value, ``en`` or ``val/en``, which then is a
        dataset of its own: ``en/data/val-00000-of-00003``.
    number, total
        Of the file among those of its place, and how many these are.
    by_value
        Rows of one value have a folder.
    """
    split, _, folder = place.rpartition("/") if by_value else (place, "", "")
    return posixpath.join(folder, TABLES, f"{split or ONLY}-{number:05d}-of-{total:05d}")


def is_shard(name: str) -> bool:
    """Whether a file holds samples of an export, by its name."""
    stem, suffix = posixpath.splitext(name)
    return suffix == ".tar" or (suffix == ".parquet" and _OF.fullmatch(stem) is not None)


def strays(there: Iterable[str], names: Collection[str]) -> list[str]:
    """The files among those that are there that a reader would take for more samples than there are to be.

    Parameters
    ----------
    there
        Names of files.
    names
        Of the shards that are to be, without suffix.
    """
    known = {*names}
    tables = any(_OF.fullmatch(name) for name in names)
    return sorted(
        name
        for name in there
        if posixpath.splitext(name)[0] not in known
        and (is_shard(name) or (tables and name.endswith(".parquet")))
    )


def shortened(names: Collection[str]) -> dict[str, list[int]]:
    """Of names in a few words: of each form the highest number and one, and how many digits their numbers have."""
    found: dict[str, list[int]] = {}
    for name in names:
        form, number = _form(name)
        count, _ = found.get(form, (0, 0))
        found[form] = [max(count, int(number) + 1), len(number)]
    return found


def names_of(short: Mapping[str, Sequence[int]]) -> set[str]:
    """The names that were shortened so, and those of the numbers between."""
    return {
        form.replace("#", f"{number:0{digits}d}")
        if "#" in form
        else posixpath.join(form, f"{number:0{digits}d}")
        for form, (count, digits) in short.items()
        for number in range(count)
    }


def _form(name: str) -> tuple[str, str]:
    """Of a tar its folder, of a Parquet file its name with a mark for the number; and that number."""
    if (match := _OF.fullmatch(name)) is not None:
        return f"{match['before']}#{match['after']}", match["number"]
    return posixpath.dirname(name), posixpath.basename(name)
