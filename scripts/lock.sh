#!/bin/sh
# Writes requirements/*.txt anew: names, versions and hashes, no address.  Needs uv.
# Run it after a change in pyproject.toml or requirements/*.in, or to take newer versions.
set -eu
cd "$(dirname "$0")/.."

compile() {
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --upgrade "$@"
}

# run: the package at work, with its extras.  dev: and everything that contributors need.
compile --all-extras --output-file requirements/run.txt pyproject.toml requirements/build.in
compile --output-file requirements/dev.txt pyproject.toml requirements/dev.in

# lowest: the tests with the oldest versions of what the package itself depends on.
lowest=$(mktemp)
trap 'rm -f "$lowest"' EXIT
uv pip compile --quiet --python-version 3.11 --no-header --no-annotate --resolution lowest-direct \
    --output-file "$lowest" pyproject.toml
compile --constraint "$lowest" --output-file requirements/lowest.txt pyproject.toml requirements/dev.in

# oracle: readers to compare with, in an environment of their own.
compile --output-file requirements/oracle.txt requirements/oracle.in

if grep -lE '[a-z]+://' requirements/*.txt; then
    echo "an address came into the files above" >&2
    exit 1
fi
