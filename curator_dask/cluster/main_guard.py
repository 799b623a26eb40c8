"""A script that starts workers must not start them again in every worker: the ``__main__`` guard."""

from __future__ import annotations

import ast
import inspect
import multiprocessing
import sys
from pathlib import Path

from curator_dask.errors import ClusterError

_GUARD_HINT = (
    "the script starts a cluster outside `if __name__ == '__main__':`. Each worker is a new Python process "
    "that imports the script first, so it would start clusters of its own. Put the call below that line:\n\n"
    "    if __name__ == '__main__':\n"
    "        client = get_client(...)\n"
    "        ...\n"
)


def check_main_guard() -> None:
    """Stop before the first process if workers would run the main script's call to `get_client` again.

    Raises
    ------
    ClusterError
        This process is a worker's that imports the main script, or the line of the main script that led here
        is not below an `if` about ``__name__``.
    """
    import dask

    # Set by multiprocessing while a spawned process imports the main script.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ClusterError(_GUARD_HINT)
    if dask.config.get("distributed.worker.multiprocessing-method") == "fork":
        return
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    spec_name = getattr(getattr(main, "__spec__", None), "name", "") or ""
    # Spawned processes import neither what has no file (python -c, a notebook) nor a package's __main__.
    if main is None or path is None or spec_name.rpartition(".")[2] == "__main__":
        return
    frame = inspect.currentframe()
    while frame is not None and not (
        frame.f_code.co_name == "<module>"
        and frame.f_globals is vars(main)
        and frame.f_code.co_filename == path
    ):
        frame = frame.f_back
    if frame is None:
        return
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    line = frame.f_lineno
    for node in ast.walk(tree):
        # `if` about the process (multiprocessing.parent_process()) also tells script from worker.
        if (
            isinstance(node, ast.If)
            and node.lineno <= line <= (node.end_lineno or node.lineno)
            and any(word in ast.unparse(node.test) for word in ("__name__", "process"))
        ):
            return
    raise ClusterError(f"{path}, line {line}: {_GUARD_HINT}")
