"""Having every worker load what steps need, and say what it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from curator_dask.cluster.workers import run_everywhere
from curator_dask.errors import WeightsError
from curator_dask.runs.step import Step

logger = logging.getLogger("curator_dask")


def load_models(steps: Sequence[Step], shown: Sequence[str], client: Any) -> dict[str, Mapping[str, Any]]:
    """Have every worker load the models of some steps; what makes each embedding, by its column.

    Those of the columns `shown` are logged.
    """
    described: dict[str, Mapping[str, Any]] = {}
    where = "in this process" if client is None else f"on {len(client.nthreads())} workers"
    sources = [step.label for step in steps if "pixels" in step.needs]
    if sources:
        logger.info("loading %s %s", ", ".join(sources), where)
    for step in steps:
        described |= describe(step, client)
    for name in [name for name in described if name in shown]:
        info = described[name]
        least = f", {info['least_cosine']:.5f} of half precision" if "least_cosine" in info else ""
        made_by = f"{info['output']} output of {info['model']} ({info['dtype']}{least}; {info['source']})"
        logger.info("%s: %s values, %s", name, info["dim"], made_by)
    return described


def describe(step: Step, client: Any) -> Mapping[str, Mapping[str, Any]]:
    """What makes the vectors of a step, by column; on the way every worker loads the model.

    Raises
    ------
    WeightsError
        Two workers loaded different weights under one name.
    """
    said: Mapping[str, Mapping[str, Any]]
    (first, said), *others = run_everywhere(step.describe, client).items()
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
