"""Which settings of a peer are the fastest on a machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.run import PeerError

NEAR, FINALISTS = 0.85, 3
"""At most so many settings, those at least so near to the fastest, are tried a second time: one run of few photographs
may be 15 % off."""

Tuning = dict[str, Any]
"""``tried``: images/s of one run or two, by the settings as JSON text. ``failed``: why others gave none."""


def tune(
    several: Sequence[Mapping[str, Any]],
    rate: Callable[[Mapping[str, Any], int], float],
    few: int,
    many: int,
) -> Tuning:
    """Try all settings, then the fastest ones once more.

    Parameters
    ----------
    several
        The settings.
    rate
        Gives images/s with some of them, of so many photographs, or raises `PeerError`.
    few, many
        Photographs of the first and of the second trial.
    """
    found: Tuning = {"tried": {}, "failed": {}}

    def try_out(text: str, images: int) -> None:
        try:
            value = float(f"{rate(json.loads(text), images):.4g}")
        except PeerError as error:
            found["failed"][text] = str(error)
            print(f"    {text}: {error}", flush=True)
            return
        found["tried"].setdefault(text, []).append(value)
        print(f"    {text}: {value} images/s", flush=True)

    for settings in several:
        try_out(json.dumps(settings), few)
    first = {text: rates[0] for text, rates in found["tried"].items()}
    near = sorted((text for text in first if first[text] > NEAR * max(first.values())), key=first.__getitem__)
    if len(near) > 1:
        for text in near[-FINALISTS:]:
            try_out(text, many)
    return found


def fastest(tried: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """The settings with the best rate, among those that were tried most often; None if there are none."""
    if not tried:
        return None
    return json.loads(max(tried, key=lambda text: (len(tried[text]), tried[text][-1])))


def settings_of(results: Sequence[Path], cpu: str) -> dict[tuple[str, str], Tuning]:
    """What former comparisons on the same kind of machine found, by load and peer, from their JSON files."""
    found = {}
    for path in results:
        try:
            result = json.loads(path.read_text())
            where, load = result["machine"]["cpu"], result["settings"]["load"]
            for name, peer in result["peers"].items():
                if peer["tried"]:
                    found[load, name] = {key: peer[key] for key in ("tried", "failed", "tuned_with")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SystemExit(
                f"--tuned {path}: expected a result of benchmarks.compare, found {error!r}"
            ) from None
        if where != cpu:
            raise SystemExit(
                f"--tuned {path}: expected a result of this machine ({cpu}), found one of {where}"
            )
    return found
