#!/usr/bin/env bash
# Make (or reuse) the virtual environment of this checkout and install the package with extras into it.
#
#   scripts/install.sh cpu,test
#
# The environment is .venv in the repository, or the folder that CURATOR_DASK_VENV names. PYTHON names the
# interpreter (3.11 or newer) that a new one is made with. uv does the installing because pip takes minutes
# for the same set; where uv cannot be had or cannot carry it out, pip does it. An install that has been done
# and whose pyproject.toml has not changed since is not done again.
set -euo pipefail

extras=${1:?usage: scripts/install.sh EXTRA[,EXTRA...], for example cpu,test}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${CURATOR_DASK_VENV:-$root/.venv}
[[ $venv == /* ]] || venv=$PWD/$venv # the working directory changes below

pytorch_cuda12=https://download.pytorch.org/whl/cu129

say() { printf '==> %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer among: ${PYTHON:-python3 python3.13 python3.12 python3.11};" \
        "install one, or name it: PYTHON=/path/to/python3.11 $0 $extras"
}

# What pip is configured with (its variables first, then its files); empty when nothing is set.
pip_setting() {
    local variable=PIP_${1^^}
    variable=${variable//-/_}
    if [[ -n ${!variable:-} ]]; then
        printf '%s' "${!variable}"
        return
    fi
    "$venv/bin/pip" config get "install.$1" 2>/dev/null || "$venv/bin/pip" config get "global.$1" 2>/dev/null || true
}

# uv reads neither pip's files nor its variables: hand on what decides where packages come from.
configure_uv() {
    local value
    value=$(pip_setting index-url)
    if [[ -n $value && -z ${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-} ]]; then export UV_DEFAULT_INDEX=$value; fi
    value=$(pip_setting extra-index-url)
    if [[ -n $value && -z ${UV_INDEX:-}${UV_EXTRA_INDEX_URL:-} ]]; then
        UV_INDEX=$(tr -s '[:space:]' ' ' <<<"$value")
        export UV_INDEX
        export UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match} # as pip chooses among several indexes
    fi
    if [[ ,$extras, == *,cuda12,* && ${UV_INDEX:-} != *pytorch* ]]; then # PyPI's torch is built for CUDA 13
        export UV_INDEX="${UV_INDEX:+$UV_INDEX }$pytorch_cuda12"
        export UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match}
    fi
    value=$(pip_setting trusted-host)
    if [[ -n $value && -z ${UV_INSECURE_HOST:-} ]]; then
        UV_INSECURE_HOST=$(tr -s '[:space:]' ' ' <<<"$value")
        export UV_INSECURE_HOST
    fi
    value=$(pip_setting cert)
    if [[ -n $value && -z ${SSL_CERT_FILE:-} ]]; then export SSL_CERT_FILE=$value; fi
    export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300} # single wheels are hundreds of megabytes
}

cd "$root"
stamp=$venv/.curator-dask-${extras//,/-}
wanted="$root $(cksum <pyproject.toml)"
if [[ -x $venv/bin/python && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    say "using $venv, where [$extras] is installed"
    exit 0
fi
if [[ -f $stamp && $(<"$stamp") != "$root "* ]]; then
    die "$venv belongs to another checkout, $(sed 's/ [0-9]* [0-9]*$//' "$stamp"), which would be run from here from now" \
        "on: name another folder by CURATOR_DASK_VENV, or remove this one"
fi

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    say "making the virtual environment $venv with $("$python" --version)"
    "$python" -m venv "$venv" ||
        die "$python could not make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"
fi
is_new_enough "$venv/bin/python" ||
    die "$venv has $("$venv/bin/python" --version), but 3.11 or newer is needed: remove the folder and run this again"

more=()
if [[ ,$extras, == *,cuda12,* ]]; then more=(--extra-index-url "$pytorch_cuda12"); fi
quiet=--quiet
if [[ -t 2 ]]; then quiet=; fi # someone who waits sees the downloads go on
say "installing curator-dask[$extras] and what it needs (about 6 GB, most of it PyTorch)"
started=$SECONDS
if [[ -x $venv/bin/uv ]] || "$venv/bin/python" -m pip install --quiet uv; then
    configure_uv
    "$venv/bin/uv" pip install $quiet --compile-bytecode --python "$venv/bin/python" --editable ".[$extras]" || {
        say "uv did not succeed (see above): trying pip, which takes minutes"
        "$venv/bin/python" -m pip install $quiet "${more[@]}" --editable ".[$extras]"
    }
else
    say "uv cannot be installed: using pip, which takes minutes"
    "$venv/bin/python" -m pip install $quiet "${more[@]}" --editable ".[$extras]"
fi
printf '%s' "$wanted" >"$stamp"
say "installed in $((SECONDS - started)) s"
