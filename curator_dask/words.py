"""Numbers of things, and of bytes, in words."""

from __future__ import annotations


def counted(number: int, noun: str, one: str = "", more: str = "") -> str:
    """The number with its noun in the form that goes with it: ``1 file``, ``12,000 files``; and a verb of that form."""
    said = f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
    verb = one if number == 1 else more
    return f"{said} {verb}" if verb else said


def sized(number: float) -> str:
    """Bytes in the unit that suits them: ``20.5 kB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return counted(round(number), "byte") if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"
