#!/bin/sh
# The main job, on the images that fixtures/ brings along: exports a point in time of a chain and verifies it, then
# backs all of them up.
# All set-up is done here.  The result goes to a temporary folder, or to the one named: sh scripts/demo.sh FOLDER
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh

ensure_environment requirements/run.txt
PATH=$(cd "$(dirname "$venv_python")" && pwd):$PATH

if [ $# -gt 0 ]; then
    mkdir -p "$1"
    folder=$1
else
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
python fixtures/unpack.py "$folder" >/dev/null
expected=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["content_sha256"])' \
    fixtures/golden/web01_wednesday.json)
cd "$folder"

# show COMMAND...: prints it, then runs it.
show() {
    printf '\n$'
    for word in "$@"; do
        case $word in
        *' '*) printf " '%s'" "$word" ;;
        *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    "$@"
}

show vhdtool tree web01
show vhdtool chain web01/Snapshots/web01_wednesday.avhdx
show vhdtool export --force --hash sha256 web01/Snapshots/web01_wednesday.avhdx wednesday.raw
show vhdtool verify wednesday.raw
show vhdtool export --force --all web01 backup
show vhdtool verify --set backup

found=$(python -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' wednesday.raw)
if [ "$found" != "$expected" ]; then
    echo "error: wednesday.raw is $found, and should be $expected" >&2
    exit 1
fi
printf '\nwednesday.raw is the disk that fixtures/make.py wrote: SHA-256 %s\n' "$found"
