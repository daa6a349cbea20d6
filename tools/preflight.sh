#!/bin/sh
# Checks what pip cannot bring: names the packages of Debian or Ubuntu that are missing, in one line.
# Usage: tools/preflight.sh PYTHON [browser]    "browser": also what tests of the page open it in
set -u

python=${1:-python3}
missing=""

# The newest Python that this system packages and the lock file was tested with.
ID="" VERSION_ID=""
if [ -r "${OS_RELEASE:-/etc/os-release}" ]; then
    # shellcheck source=/dev/null
    . "${OS_RELEASE:-/etc/os-release}"
fi
case "$ID $VERSION_ID" in
    "debian 13") packaged=python3.13 ;;
    "ubuntu 24.04") packaged=python3.12 ;;
    *) packaged=python3.11 ;;
esac
case "$ID" in
    ubuntu) chromium=chromium-browser driver=chromium-chromedriver ;;
    *) chromium=chromium driver=chromium-driver ;;
esac
has() { command -v "$1" >/dev/null 2>&1; }

has git || missing="$missing git"
has make || missing="$missing make"
has g++ || missing="$missing g++"

if ! has "$python"; then
    missing="$missing $packaged $packaged-venv"
elif ! "$python" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "nvg: $("$python" --version 2>&1) is too old: Python 3.11 or newer is needed." >&2
    missing="$missing $packaged $packaged-venv"
else
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python$version-venv"
fi

if [ "${2:-}" = browser ]; then
    has chromium || has chromium-browser || has google-chrome || missing="$missing $chromium"
    has chromedriver || missing="$missing $driver"
fi

if [ -n "$missing" ]; then
    echo "nvg: this machine lacks:$missing. Install with: sudo apt-get install -y$missing" >&2
    exit 1
fi
