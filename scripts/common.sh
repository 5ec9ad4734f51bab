# Sourced by quickstart.sh and test.sh: checks what they need, and makes the virtual environment.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
cd "$root" || exit

fail() {
    echo "$*" >&2
    exit 1
}

step() {
    printf '\n== %s (%d s)\n' "$*" "$SECONDS"
}

has_header() {
    echo "#include <$1>" | "${CXX:-c++}" "${@:2}" -x c++ -E - > /dev/null 2>&1
}

# require PACKAGE...: install the Debian packages, or print the one command that does
require() {
    [ $# -gt 0 ] || return 0
    if ! command -v apt-get > /dev/null; then
        fail "Something is missing that Debian has in $*: install the same with this system's package manager and run again."
    elif [ "$(id -u)" -ne 0 ]; then
        fail "Something is missing; install it with: sudo apt-get install -y $*"
    fi
    step "Installing $*"
    apt-get update -qq || echo "apt-get update failed; trying with the package lists at hand" >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" < /dev/null > /dev/null ||
        fail "apt-get could not install $*: see the messages above."
}

# check_tools [gtest]: everything that pip cannot bring
# shellcheck disable=SC2120
check_tools() {
    local packages=()
    command -v "${CXX:-c++}" > /dev/null && command -v "${CC:-cc}" > /dev/null || packages+=(g++)
    command -v "$python" > /dev/null || packages+=(python3)
    "$python" -c 'import venv, ensurepip' 2> /dev/null || packages+=(python3-venv)
    require "${packages[@]}"

    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "Python 3.10 or newer is needed and $("$python" --version) was found: install a newer one and set PYTHON to it."

    packages=()
    has_header Python.h "-I$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')" || packages+=(python3-dev)
    [ "${1:-}" != gtest ] || has_header gtest/gtest.h || packages+=(libgtest-dev)
    require "${packages[@]}"
}

# everything is installed into .venv, whose programs come first from here on
make_venv() {
    [ -x .venv/bin/python ] || "$python" -m venv .venv || fail "Could not make the virtual environment $root/.venv."
    export PATH="$root/.venv/bin:$PATH"
    python -m pip install --quiet --upgrade pip
}

CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(getconf _NPROCESSORS_ONLN)}
export CMAKE_BUILD_PARALLEL_LEVEL
export PIP_DISABLE_PIP_VERSION_CHECK=1
