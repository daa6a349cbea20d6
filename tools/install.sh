#!/bin/sh
# Creates the virtual environment and installs the locked versions into it; beside it one for the page, VENV-app.
# Usage: tools/install.sh PYTHON VENV
set -eu

python=$1
venv=$2
app=$venv-app
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
# Gradio wants an older Pillow than records and scores are made with. What is the same for both is seen, not copied.
log "creating $app for the page"
"$python" -m venv --clear --without-pip "$app"
site='import sysconfig; print(sysconfig.get_path("purelib"))'
"$venv/bin/python" -c "$site" >"$("$app/bin/python" -c "$site")/beside_nvg.pth"
"$app/bin/python" -m pip --disable-pip-version-check install --quiet --no-input --no-deps -r requirements-app.lock
"$app/bin/python" -m pip --disable-pip-version-check install --quiet --no-input --no-deps --no-build-isolation -e .
log "installation took $(($(date +%s) - started)) s"
