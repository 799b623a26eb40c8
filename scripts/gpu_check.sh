#!/usr/bin/env bash
# Check all that runs on a GPU, in one go of under 25 minutes: a line a step, and a JSON at the end.
#
#   scripts/gpu_check.sh [--device cpu] [--out FILE.json] [--only STEP,STEP] [--minutes 25]
#
# A step that fails, or takes too long, is noted and the next one runs. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python}" -m benchmarks.gpu_check "$@"
