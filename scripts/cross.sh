#!/usr/bin/env bash
# cross.sh aarch64|armhf|windows [CMake options]
# Builds libllama with the method for another system, with Debian's cross compilers, and runs the C++ tests in an emulator.
#   INFLLM_TEST_MODEL  a small GGUF file, for end-to-end tests; they are skipped without one
#   INFLLM_CTEST       arguments of ctest: "-R session"
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

options=()
case "${1:-}" in
    aarch64) triplet=aarch64-linux-gnu   packages="g++-$triplet qemu-user" programs="$triplet-g++ qemu-aarch64" ;;
    armhf)   triplet=arm-linux-gnueabihf packages="g++-$triplet qemu-user" programs="$triplet-g++ qemu-arm" ;;
    windows) triplet=x86_64-w64-mingw32  packages="g++-mingw-w64-x86-64-posix wine64" programs="$triplet-g++-posix /usr/lib/wine/wine64"
             # tests look behind the interface of the library, which a DLL hides
             options+=(-DBUILD_SHARED_LIBS=OFF -DGGML_OPENMP=OFF) ;;
    *)       fail "usage: scripts/cross.sh aarch64|armhf|windows [CMake options]" ;;
esac
target=$1
shift

for program in cmake ninja $programs /usr/src/googletest/CMakeLists.txt; do
    [ -e "$program" ] || command -v "$program" > /dev/null || { install_packages "$packages googletest cmake ninja-build"; break; }
done

build=build/cross-$target
toolchain=$root/cmake/toolchains/$triplet.cmake
gtest=$root/$build/gtest

step "GoogleTest for $triplet"
cmake -S /usr/src/googletest -B "$build/googletest" -G Ninja -DCMAKE_TOOLCHAIN_FILE="$toolchain" -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_GMOCK=OFF -DCMAKE_INSTALL_PREFIX="$gtest" > /dev/null
cmake --build "$build/googletest" --target install > /dev/null

step "infllm-cpp for $triplet, in $build"
cmake -S . -B "$build" -G Ninja -DCMAKE_TOOLCHAIN_FILE="$toolchain" -DCMAKE_BUILD_TYPE=Release \
    -DINFLLM_BUILD_TESTS=ON -DGTest_DIR="$gtest/lib/cmake/GTest" "${options[@]}" "$@" > /dev/null
with_progress cmake --build "$build"

step "C++ tests in an emulator"
export WINEDEBUG=-all WINEPREFIX="$root/$build/wine"
# shellcheck disable=SC2086 # arguments
ctest --test-dir "$build" --output-on-failure --no-tests=error ${INFLLM_CTEST:---parallel 2}
