"""How readers of WebDataset shards see names: what makes a dataset look the same to all of them.

- Hugging Face's builder takes its columns from the first five samples of the first shard. It raises where these have
  not all the same fields, and passes over what comes later. ``JPG`` is another field than ``jpg``.
- webdataset and energon end a key at the first dot of a file's name. energon refuses a key that occurs in two shards.
- DALI's index has no place for white space.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from curator_dask.webdataset.samples import key_text
from curator_dask.words import counted

_ODD = re.compile(r"[.\\\s]")

#: What a sample gets that lacks the field, by suffix: a value that says nothing.
EMPTY = {"txt": b"", "json": b"{}"}


def portable_key(key: str) -> str:
    """The key with ``_`` for what some readers do not take: dots in the names of folders, white space, odd bytes."""
    return _ODD.sub("_", key_text(key))


def portable_suffix(suffix: str) -> str:
    """The suffix in lower case."""
    return suffix.lower()


def habits(fields: Mapping[str, int], samples: int, odd_keys: int) -> list[str]:
    """Which readers will see a dataset differently from what it has.

    Parameters
    ----------
    fields
        By suffix, how many samples have it.
    samples
        How many there are.
    odd_keys
        How many keys have dots in their folders, white space or odd bytes.
    """
    said = []
    some = [name for name, count in sorted(fields.items()) if count < samples]
    if some:
        said.append(
            f"not every sample has {', '.join('.' + name for name in some)}: Hugging Face's builder raises where one"
            " of the first five samples lacks a field of another, and leaves out a field that none of them has"
        )
    upper = [name for name in sorted(fields) if name != name.lower()]
    if upper:
        said.append(
            f"{', '.join('.' + name for name in upper)}: to Hugging Face's builder and DALI another field than the"
            " same in lower case"
        )
    if odd_keys:
        said.append(
            f"{counted(odd_keys, 'key', 'has', 'have')} dots, white space or odd bytes: DALI takes no index of"
            " white space, and other readers may end a key elsewhere"
        )
    return said
