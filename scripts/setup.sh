#!/bin/sh
# Makes the environment for development, or brings it up to date: sh scripts/setup.sh [requirements/NAME.txt]
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh

ensure_environment "${1:-requirements/dev.txt}"
