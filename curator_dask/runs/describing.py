"""Having every worker load what steps need, and say what it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from curator_dask.cluster.workers import run_everywhere
from curator_dask.errors import WeightsError


def load_models(steps: Sequence[Any], shown: Sequence[str], client: Any) -> dict[str, dict[str, Any]]:
    """Have every worker load the models of some steps; what makes each embedding, by its column.

    Those of the columns `shown` are printed.
    """
    if steps:
        sources = ", ".join(str(step.encoder) for step in steps)
        where = "in this process" if client is None else f"on {len(client.nthreads())} workers"
        print(f"loading {sources} {where}", flush=True)
    described = {step.column: describe(step, client) for step in steps}
    for name in [name for name in described if name in shown]:
        info = described[name]
        made_by = f"{info['output']} output of {info['model']} ({info['dtype']}; {info['source']})"
        print(f"{name}: {info['dim']} values, {made_by}")
    return described


def describe(step: Any, client: Any) -> dict[str, Any]:
    """What makes an embedding; on the way every worker loads the model.

    Raises
    ------
    WeightsError
        Two workers loaded different weights under one name.
    """
    found = {address: info.to_dict() for address, info in run_everywhere(step.describe, client).items()}
    (first, info), *others = found.items()
    for address, other in others:
        if other != info:
            differing = {key: (info[key], other[key]) for key in info if info[key] != other[key]}
            raise WeightsError(
                f"{step.column}: the workers {first} and {address} do not run the same model: {differing}. Give every"
                " node the same files, versions and kind of device"
            )
    return info
