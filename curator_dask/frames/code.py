"""What a user's own class does, as a digest: so that finished work is made anew when its code has changed."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import textwrap
from collections.abc import Sequence
from typing import Any

from dask.base import tokenize


def code_digest(settings: Any, written: Sequence[Any], others: Sequence[Any] = ()) -> str:
    """Twelve digits of settings and of what classes and functions say, comments and layout left out.

    Parameters
    ----------
    settings
        Anything that Dask can tokenize.
    written
        Classes and functions whose source counts.
    others
        Objects whose content counts as Dask tokenizes it.
    """
    digest = hashlib.sha256(tokenize(settings).encode())
    for thing in others:
        digest.update(tokenize(thing).encode())
    for thing in written:
        # What was typed into a prompt, or is built in, has no source: the name must do.
        with contextlib.suppress(OSError, TypeError, SyntaxError):
            digest.update(ast.dump(ast.parse(textwrap.dedent(inspect.getsource(thing)))).encode())
    return digest.hexdigest()[:12]
