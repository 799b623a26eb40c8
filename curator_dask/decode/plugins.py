"""Formats that Pillow decodes with a package of its own each: what is installed is used once an image needs it."""

from __future__ import annotations

import functools
import importlib

#: By the format, the packages by which Pillow decodes it, the first that is there; each with the function that tells
#: Pillow so, if importing it is not enough.
_PACKAGES: dict[str, tuple[tuple[str, str | None], ...]] = {
    "HEIF": (("pillow_heif", "register_heif_opener"), ("pi_heif", "register_heif_opener")),
    "JPEG XL": (("pillow_jxl", None),),
}
_REMEDIES = {"HEIF": "pillow-heif", "JPEG XL": "pillow-jxl-plugin"}


@functools.cache
def load_plugin(kind: str) -> bool:
    """Have Pillow decode a format in this process, from now on.

    Parameters
    ----------
    kind
        ``"HEIF"`` (iPhones' ``.heic``) or ``"JPEG XL"``; of others nothing is loaded.

    Returns
    -------
    bool
        Whether its package is there.
    """
    for package, register in _PACKAGES.get(kind, ()):
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        if register is not None:
            getattr(module, register)()
        return True
    return False


def remedy_for(kind: str) -> str:
    """What to do to have a format decoded, behind a colon; empty where nothing is known."""
    package = _REMEDIES.get(kind)
    return f": pip install {package} where the workers run" if package else ""
