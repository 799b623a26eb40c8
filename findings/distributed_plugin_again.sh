#!/usr/bin/env bash
# distributed 2026.7.1: registering a worker plugin again, by the same name, tears the first one down on every worker,
# in the midst of whatever it holds, unless its class says `idempotent = True`.
#
# So a library that registers its plugin before each run (to be sure that it is there) and frees what it keeps in
# teardown() frees it before each run. Seen: setup, teardown, setup; with idempotent setup alone.
# Source: distributed/worker.py, Worker.plugin_add; distributed/scheduler.py, register_worker_plugin.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "dask[distributed]==2026.7.1"
cat >"$folder/again.py" <<'PYTHON'
import sys
from pathlib import Path

from distributed import Client, LocalCluster, WorkerPlugin


class Keeps(WorkerPlugin):
    name = "keeps"

    def __init__(self, calls):
        self.calls = calls  # a file: the worker has a copy of this object

    def note(self, what):
        with open(self.calls, "a") as file:
            print(what, file=file)

    def setup(self, worker):
        self.note("setup")

    def teardown(self, worker):
        self.note("teardown")


class KeepsOnce(Keeps):
    name = "keeps-once"
    idempotent = True


def main():
    with LocalCluster(1, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        for kind, expected in ((Keeps, ["setup", "teardown", "setup"]), (KeepsOnce, ["setup"])):
            calls = Path(sys.argv[1], kind.__name__)
            client.register_plugin(kind(str(calls)))
            client.register_plugin(kind(str(calls)))
            found = calls.read_text().split()
            print(kind.__name__, found)
            if found != expected:
                raise SystemExit(f"changed: expected {expected}")


if __name__ == "__main__":
    main()
PYTHON
"$folder/venv/bin/python" "$folder/again.py" "$folder"
