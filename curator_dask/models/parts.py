"""What a model has besides its weights, as transformers loads it from a folder: processors and tokenizers."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from curator_dask.errors import ConfigError
from curator_dask.models.towers import silent_transformers
from curator_dask.models.weights import first_line


def load_part(folder: Path, kind: str, files: Collection[str]) -> Any:
    """A processor or tokenizer, without code of the folder's.

    Parameters
    ----------
    folder
        With its files.
    kind
        Name of transformers' class, such as ``"AutoTokenizer"``.
    files
        That there may be, for messages.

    Raises
    ------
    ConfigError
        It cannot be loaded.
    """
    import transformers

    try:
        with silent_transformers():
            return getattr(transformers, kind).from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        found = sorted(path.name for path in folder.iterdir() if path.name in files)
        raise ConfigError(
            f"{folder}: transformers (here {transformers.__version__}) cannot load it by {kind}:"
            f" {type(error).__name__}: {first_line(error)}. It has {', '.join(found) or 'none of its files'}: put"
            " them there as save_pretrained of the model's processor, or of its image processor and its tokenizer,"
            " writes them; a tokenizer of SentencePiece needs the packages sentencepiece and protobuf"
        ) from error


def name_of_parts(folder: Path, parts: Sequence[Any], files: Collection[str]) -> str:
    """The classes of processors and tokenizers, and twelve digits of the files that decide what they make."""
    digest = hashlib.sha256()
    for name in sorted(files):
        if (folder / name).is_file():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    kinds = dict.fromkeys(type(part).__name__ for part in parts)
    return f"{' '.join(kinds)} [{digest.hexdigest()[:12]}]"
