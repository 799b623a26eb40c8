#!/usr/bin/env bash
# Run the tests, from nothing: a virtual environment, the installs, then pytest.
#
#   scripts/test.sh [options for pytest]
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ -z ${CURATOR_DASK_VENV:-} || $CURATOR_DASK_VENV == /* ]] || export CURATOR_DASK_VENV=$PWD/$CURATOR_DASK_VENV
cd "$root"

scripts/install.sh cpu,test
# The tests start programs (`curator-dask`, `python`) that must be those of the environment.
export PATH=${CURATOR_DASK_VENV:-$root/.venv}/bin:$PATH
# Hundreds of processes load the package: compiled once here, also where PYTHONDONTWRITEBYTECODE is set. So are the
# tests, by pytest in its own way: else each of its processes takes 5 s for that, each time.
unset PYTHONDONTWRITEBYTECODE
python -m compileall -q curator_dask tests
# All of them, a file in each of three processes, also on two cores: many wait for clusters and for what was killed.
(($#)) || set -- -n 3 --dist loadfile --no-loadscope-reorder
printf '==> pytest %s\n' "$*"
exec python -m pytest "$@"
