#!/usr/bin/env bash
# Try a wheel in a bare system: Debian's smallest, and Python. No compiler, nothing of this machine.
#
#   bash scripts/check_wheel.sh WHEEL [SUITE]     SUITE: release of Debian; default: this machine's, else stable
#
# A wheel for aarch64 runs in QEMU (Debian's qemu-user-static), which computes about a token a second on each core: N_PASSKEY=768
# makes the text shorter. One for this kind of machine is tried with each variant of the CPU's code that runs here.
# Needs root, debootstrap, and a Python of the minor version that SUITE has, which fetches what the wheel depends on.
# MIRROR is Debian's, WORK the folder for the system; default: the usual one, and one that is removed at the end.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ -f "${1:-}" ] || fail "usage: bash scripts/check_wheel.sh WHEEL [SUITE]"
[ "$(id -u)" -eq 0 ] || fail "debootstrap and chroot need root."
command -v debootstrap > /dev/null || fail "Needed and not found: debootstrap; install with: apt-get install -y debootstrap"
wheel=$(realpath "$1")
suite=${2:-$(. /etc/os-release; [ "$ID" = debian ] && echo "$VERSION_CODENAME" || echo stable)}
work=${WORK:-$(mktemp -d)}
case "$wheel" in
    *_aarch64.whl) arch=arm64 machine=aarch64 ;;
    *)             arch=amd64 machine=x86_64 ;;
esac
[ $machine = "$(uname -m)" ] || [ -e /proc/sys/fs/binfmt_misc/qemu-$machine ] || fail "Programs of $machine do not start here:" \
    "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc; apt-get install -y qemu-user-static"
cleanup() {
    umount "$work/proc" 2> /dev/null || true
    [ -n "${WORK:-}" ] || rm -rf "$work"
}
trap cleanup EXIT

if [ ! -x "$work/usr/bin/python3" ]; then
    step "Debian $suite into $work"
    debootstrap --arch=$arch --variant=minbase --include=python3,python3-venv "$suite" "$work" ${MIRROR:+"$MIRROR"} \
        > "$work.log" ||
        { tail "$work.log"; fail "debootstrap failed: give a mirror by MIRROR."; }
    rm -f "$work.log"
fi
mountpoint -q "$work/proc" || mount -t proc proc "$work/proc" # how much memory there is
! chroot "$work" sh -c 'command -v cc c++ gcc g++ clang cmake make' || fail "$work has compilers."

step "The wheel, what it depends on, and the demo model"
make_venv
rm -rf "$work/wheels" "$work/venv"
mkdir -p "$work/wheels" "$work/cache"
platforms=()
for glibc in $(seq 17 39); do
    platforms+=(--platform "manylinux_2_${glibc}_$machine")
done
python -m pip download --quiet --only-binary :all: "${platforms[@]}" --dest "$work/wheels" "$wheel"
cp scripts/check_installed.py "$work/"
bare() { chroot "$work" env -i PATH=/venv/bin:/usr/bin:/bin INFLLM_CACHE_DIR=/cache "$@"; }
bare python3 -m venv /venv
bare pip install --quiet --no-index --find-links /wheels "/wheels/$(basename "$wheel")"
# from here: the bare system need not have a network
PYTHONPATH=$(echo "$work"/venv/lib/python*/site-packages) INFLLM_CACHE_DIR="$work/cache" \
    python -c 'import runpy; runpy.run_path("python/infllm_cpp/models.py")["fetch"]()'

step "Checks"
variants=
[ $machine != "$(uname -m)" ] || variants=--variants # in QEMU they would take hours
bare python /check_installed.py ${N_PASSKEY:+"$N_PASSKEY"} $variants
step "The wheel works"
