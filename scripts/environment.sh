# shellcheck shell=sh
# Sourced by the other scripts: makes a virtual environment with hash-checked packages and this checkout in it.
#
#   VHDTOOL_VENV   where it goes; default .venv in the checkout
#   PYTHON         which Python makes it; default the first of python3, python3.14 ... python3.11 that is new enough

# Prints the Python to use, or says what is missing.
find_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    echo "error: no Python 3.11 or newer: tried ${PYTHON:-python3, python3.14 ... python3.11}" >&2
    return 1
}

# new_venv PYTHON FOLDER: Debian and Ubuntu keep part of the venv module in a package of its own.
new_venv() {
    if ! "$1" -c 'import ensurepip, venv' 2>/dev/null; then
        version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        package="python${version}-venv"
        if ! command -v apt-get >/dev/null; then
            echo "error: $1 has no venv module (ensurepip is missing)" >&2
            return 1
        fi
        if [ "$(id -u)" != 0 ]; then
            echo "error: $1 has no venv module; run: sudo apt-get install $package" >&2
            return 1
        fi
        echo "installing $package" >&2
        apt-get update -qq >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >&2
    fi
    "$1" -m venv "$2"
}

# ensure_environment REQUIREMENTS: makes the environment, or makes it anew after a change in the requirements.
# Sets venv_python to its interpreter.
ensure_environment() {
    venv=${VHDTOOL_VENV:-.venv}
    venv_python=$venv/bin/python
    # The stamp says what was installed.  pyproject.toml is part of it because of the entry points.
    stamp=$venv/installed-$(basename "$1")
    wanted=$(cat "$1" pyproject.toml | cksum)
    if [ -x "$venv_python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
    if [ ! -x "$venv_python" ]; then
        python=$(find_python)
        echo "making a virtual environment in $venv with $python" >&2
        new_venv "$python" "$venv"
    fi
    echo "installing $1 (once; numba and NumPy are some 60 MB to fetch)" >&2
    "$venv_python" -m pip install --quiet --require-hashes -r "$1" >&2
    "$venv_python" -m pip install --quiet --no-deps --no-build-isolation --editable . >&2
    echo "$wanted" >"$stamp"
}
