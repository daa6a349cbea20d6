#!/bin/sh
# Creates the virtual environment and installs the locked versions into it.
# Usage: tools/install.sh PYTHON VENV
set -eu

python=$1
venv=$2
lock=requirements.lock
started=$(date +%s)
log() { echo "nvg: $*"; }

pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-input "$@"
}

log "creating $venv with $("$python" --version)"
"$python" -m venv "$venv"
log "installing torch (the largest part, several GB with its CUDA libraries)"
pip -c "$lock" setuptools wheel ninja packaging numpy torch torchvision
# DeepSpeed exists as source only and asks the installed torch while it is built.
log "building DeepSpeed"
pip -c "$lock" --no-build-isolation deepspeed
log "installing everything else from $lock"
pip -r "$lock"
pip --no-deps --no-build-isolation -e .
log "installation took $(($(date +%s) - started)) s"
