"""Having workers load what steps need, and say what it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curator_dask.cluster.presence import threads_of_workers
from curator_dask.cluster.workers import run_everywhere
from curator_dask.errors import WeightsError
from curator_dask.frames.record import CHOSEN
from curator_dask.runs.blaming import blaming
from curator_dask.runs.step import Step

logger = logging.getLogger("curator_dask")


@dataclass(frozen=True)
class Loaded:
    """What workers have loaded.

    Attributes
    ----------
    described
        What makes each embedding, by its column.
    workers
        Addresses of those that have all of it; empty where none of it was a model's, or there is no cluster.
    """

    described: Mapping[str, Mapping[str, Any]]
    workers: frozenset[str]


def load_models(steps: Sequence[Step], shown: Sequence[str], client: Any, most: int | None = None) -> Loaded:
    """Have workers load the models of some steps.

    Parameters
    ----------
    steps
        Which.
    shown
        Columns whose models are logged.
    client
        Of the cluster.
    most
        Workers, at most: more have nothing to do. None is all.
    """
    described: dict[str, Mapping[str, Any]] = {}
    workers: frozenset[str] | None = None
    count = None if client is None else len(threads_of_workers(client))
    count = count if count is None or most is None else max(1, min(count, most))
    where = "in this process" if count is None else f"on {count} worker{'s' if count != 1 else ''}"
    sources = [step.label for step in steps if "pixels" in step.needs]
    if sources:
        logger.info("loading %s %s", ", ".join(sources), where)
    for step in steps:
        with blaming(step):
            said = run_everywhere(step.describe, client, count)
        described |= _agreed(said)
        workers = frozenset(said) if workers is None else workers & {*said}
    logged: list[Mapping[str, Any]] = []  # several columns may be of one model
    for name in [name for name in described if name in shown]:
        info = {key: value for key, value in described[name].items() if key != CHOSEN}
        if info in logged:
            continue
        logged.append(info)
        least = f", {info['least_cosine']:.5f} of half precision" if "least_cosine" in info else ""
        how = f"{info.get('dtype', 'as is claimed')}{least}"
        made_by = f"{info['output']} output of {info['model']} ({how}; {info['source']})"
        what = f"{info['dim']} values" if "dim" in info else info.get("detection", "captions")
        what = f"{info['classes'].split()[0]} classes" if "classes" in info else what
        what = f"{', '.join(info['answers'])} to {info['prompt']!r}" if "answers" in info else what
        what = f"{what} of {info['prompt']}" if "detection" in info and info.get("prompt") else what
        logger.info("%s: %s, %s", name, what, made_by)
    return Loaded(described, workers if client is not None and workers is not None else frozenset())


def _agreed(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Mapping[str, Mapping[str, Any]]:
    """What makes the vectors of a step, by column, as all workers say.

    Raises
    ------
    WeightsError
        Two workers loaded different weights under one name.
    """
    (first, said), *others = found.items()
    for address, other in others:
        for column, info in said.items():
            found = other.get(column, {})
            differing = differences(info, found)
            if differing:
                raise WeightsError(
                    f"{column}: the workers {first} and {address} do not run the same model: {differing}. Give every"
                    " node the same files, versions and kind of device"
                )
    return said


def differences(info: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where two workers' models differ, both values by name. How precise half precision was is no part of a model."""
    names = [name for name in info if name != "least_cosine"]
    return {name: (info[name], found.get(name)) for name in names if info[name] != found.get(name)}
