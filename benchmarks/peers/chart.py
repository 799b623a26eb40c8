"""What was found as a table, and as a bar chart in SVG, written without a library: no extra of this package has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.harness import digits

WIDTH, LEFT, RIGHT, TOP, STEP = (
    780,
    250,
    70,
    44,
    26,
)  # pixels: the picture, room for names and figures, and a bar's
_BAR = 16


def bar_chart(
    title: str, unit: str, bars: Mapping[str, Mapping[str, Any]], marked: Sequence[str] = ()
) -> str:
    """Horizontal bars from zero to the median, with a line from the least to the largest value.

    Parameters
    ----------
    title, unit
        What stands above.
    bars
        A summary of `benchmarks.harness.summary` for each name.
    marked
        Names whose bars have another colour.
    """
    height = TOP + STEP * len(bars) + 10
    scale = (WIDTH - LEFT - RIGHT) / max((value["max"] for value in bars.values()), default=1)
    # Dark on white, whatever the page around it has.
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif"'
        ' font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" font-size="15">{escape(title)}</text>',
        f'<text x="10" y="36" font-size="11" fill="#555">{escape(unit)}: median, least and largest</text>',
    ]
    for number, (name, value) in enumerate(bars.items()):
        top = TOP + STEP * number
        middle = top + _BAR / 2
        least, median, largest = (LEFT + scale * value[key] for key in ("min", "median", "max"))
        colour = "#2a6fbb" if name in marked else "#9aa0a6"
        parts += [
            f'<text x="{LEFT - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{median - LEFT:.1f}" height="{_BAR}" fill="{colour}"/>',
            f'<path d="M{least:.1f} {middle:.1f}H{largest:.1f}" stroke="black"/>',
            f'<text x="{largest + 6:.1f}" y="{middle + 4:.1f}">{value["median"]:.4g}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def table_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Table of all peers, heading first."""
    rows = [["peer", "images/s", "span", "CPU s per 1,000", "cold start s", "peak PSS MiB", "least cosine"]]
    for name, peer in found["peers"].items():
        rate = peer["images_per_second"]
        remarks = [] if peer["steady"] == "last job" else ["by difference"]
        if len(rate["runs"]) < found["rounds"]:
            remarks.append(f"the first {len(rate['runs'])} rounds")
        rows.append(
            [
                f"{name} ({', '.join(remarks)})" if remarks else name,
                digits(rate["median"], 4),
                f"{digits(rate['min'], 4)} to {digits(rate['max'], 4)}",
                f"{peer['cpu_seconds_per_1000']['median']:.3g}",
                f"{peer['cold_seconds']['median']:.3g}",
                f"{peer['peak_mib']:.0f}",
                f"{peer['fidelity']['least_cosine']:.4f}",
            ]
        )
    for name, rate in found["bare"].items():
        span = f"{digits(rate['min'], 4)} to {digits(rate['max'], 4)}"
        rows.append([f"bare {name}", digits(rate["median"], 4), span, *["-"] * 4])
    return rows + [[f"{name} (left out)", *["-"] * 6] for name in found["left_out"]]
