#!/bin/sh
# Runs the tests, and every benchmark once; all set-up is done here.  Arguments go to pytest:
#   sh scripts/test.sh tests/chain -k overlap
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh

ensure_environment requirements/dev.txt
exec "$venv_python" -m pytest -n auto "$@"
