# Sourced by quickstart.sh, test.sh and cross.sh: checks what they need, and makes the virtual environment.
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

# missing_packages [gtest]: the Debian packages for what is needed, with gtest by the tests, and pip cannot bring
missing_packages() {
    local include
    command -v "${CC:-cc}" > /dev/null && command -v "${CXX:-c++}" > /dev/null || echo g++
    "$python" -c 'import venv, ensurepip' 2> /dev/null || echo python3 python3-venv
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))' 2> /dev/null) &&
        has_header Python.h -I "$include" || echo python3-dev
    [ "${1:-}" != gtest ] || has_header gtest/gtest.h || echo libgtest-dev
    [ "${1:-}" != gtest ] || command -v pkg-config > /dev/null || echo pkg-config
}

# install_packages "PACKAGES": by apt, or print the one command that does
install_packages() {
    command -v apt-get > /dev/null ||
        fail "Needed and not found: $1 (Debian's names); install them with this system's package manager."
    [ "$(id -u)" -eq 0 ] ||
        fail "Needed and not found: $1; install with: sudo apt-get install -y $1"
    step "Installing $1"
    apt-get update -qq || echo "apt-get update failed; trying with the package lists at hand" >&2
    # shellcheck disable=SC2086 # one word a package
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $1 < /dev/null > /dev/null ||
        fail "apt-get could not install $1: see its messages above."
}

# check_tools [gtest]: install what is missing, or print the one command that does
check_tools() {
    local packages
    packages=$(missing_packages "$@")
    packages=${packages//$'\n'/ }
    if [ -n "$packages" ]; then
        install_packages "$packages"
        packages=$(missing_packages "$@")
        [ -z "$packages" ] ||
            fail "Still not found after the installation: ${packages//$'\n'/ }; set CC, CXX and PYTHON to the system's own programs."
    fi
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "Python 3.10 or newer is needed, this is $("$python" --version): install a newer one and set PYTHON to it."
}

# everything is installed into .venv, whose programs come first from here on
make_venv() {
    [ -x .venv/bin/python ] || "$python" -m venv .venv || fail "Could not make the virtual environment $root/.venv."
    export PATH="$root/.venv/bin:$PATH"
    python -m pip install --quiet --upgrade pip
}

# with_progress COMMAND...: what a build prints, as a line for each tenth that is done; its end if it fails
with_progress() {
    local log status=0
    log=$(mktemp)
    "$@" 2>&1 | tee "$log" | awk '
        # ninja: "[12/340] Building ..."; and what pip says between
        match($0, /\[[0-9]+\/[0-9]+\]/) {
            split(substr($0, RSTART + 1, RLENGTH - 2), n, "/")
            tenth = int(10*n[1]/n[2])
            if (tenth != last || n[1] == n[2]) { printf "  %s of %s steps\n", n[1], n[2]; fflush(); last = tenth }
            next
        }
        /^ *(Collecting|Building|Installing|Successfully|Preparing|Downloading|\*\*\*)/ { print "  " substr($0, 1, 100); fflush() }
    ' || status=$?
    [ "$status" -eq 0 ] || { tail -n 60 "$log"; rm -f "$log"; return "$status"; }
    rm -f "$log"
}

CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(getconf _NPROCESSORS_ONLN)}
export CMAKE_BUILD_PARALLEL_LEVEL
export PIP_DISABLE_PIP_VERSION_CHECK=1
