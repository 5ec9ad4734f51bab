#!/usr/bin/env bash
# cross.sh aarch64|armhf|windows|musl|macos [CMake options]
# Builds libllama with the method for another system and runs the C++ tests in an emulator. With Debian's cross compilers; for musl
# (static, x86-64) and macOS with Zig's of PyPI. For macOS libllama alone, which nothing here runs.
#   INFLLM_TEST_MODEL  a GGUF file for end-to-end tests: by default random weights, with which tests that need sense are left out
#   INFLLM_CTEST       arguments of ctest: "-R session"
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

options=()
zig=
googletest=/usr/src/googletest/CMakeLists.txt
case "${1:-}" in
    aarch64) triplet=aarch64-linux-gnu   packages="g++-$triplet qemu-user" programs="$triplet-g++ qemu-aarch64" ;;
    armhf)   triplet=arm-linux-gnueabihf packages="g++-$triplet qemu-user" programs="$triplet-g++ qemu-arm" ;;
    windows) triplet=x86_64-w64-mingw32  packages="g++-mingw-w64-x86-64-posix wine64" programs="$triplet-g++-posix /usr/lib/wine/wine64"
             # tests look behind the interface of the library, which a DLL hides
             options+=(-DBUILD_SHARED_LIBS=OFF -DGGML_OPENMP=OFF) ;;
    musl)    triplet=zig zig=x86_64-linux-musl packages= programs=
             options+=(-DBUILD_SHARED_LIBS=OFF -DGGML_OPENMP=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON) ;;
    macos)   triplet=zig zig=aarch64-macos packages="llvm-14" programs=llvm-install-name-tool-14 googletest=
             options+=(-DGGML_OPENMP=OFF -DGGML_METAL=OFF -DGGML_BLAS=OFF -DGGML_ACCELERATE=OFF) ;; # no frameworks of Apple's
    *)       fail "usage: scripts/cross.sh aarch64|armhf|windows|musl|macos [CMake options]" ;;
esac
target=$1
shift

for program in cmake ninja $programs $googletest; do
    [ -e "$program" ] || command -v "$program" > /dev/null ||
        { install_packages "$packages cmake ninja-build ${googletest:+googletest}"; break; }
done
make_venv
python -m pip install --quiet gguf ${zig:+ziglang}

build=build/cross-$target
toolchain=(-DCMAKE_TOOLCHAIN_FILE="$root/cmake/toolchains/$triplet.cmake" ${zig:+-DINFLLM_ZIG_TARGET=$zig})
gtest=$root/$build/gtest

if [ "$target" = macos ]; then
    step "libllama for $zig, in $build"
    cmake -S . -B "$build" -G Ninja "${toolchain[@]}" -DCMAKE_BUILD_TYPE=Release "${options[@]}" "$@" > /dev/null
    with_progress cmake --build "$build" --target llama
    step "Built: nothing here runs it"
    exit
fi

step "GoogleTest for $triplet"
cmake -S "$(dirname $googletest)" -B "$build/googletest" -G Ninja "${toolchain[@]}" -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_GMOCK=OFF -DCMAKE_INSTALL_PREFIX="$gtest" > /dev/null
cmake --build "$build/googletest" --target install > /dev/null

step "infllm-cpp for $triplet, in $build"
cmake -S . -B "$build" -G Ninja "${toolchain[@]}" -DCMAKE_BUILD_TYPE=Release \
    -DINFLLM_BUILD_TESTS=ON -DGTest_DIR="$gtest/lib/cmake/GTest" "${options[@]}" "$@" > /dev/null
with_progress cmake --build "$build"

step "C++ tests"
export WINEDEBUG=-all WINEPREFIX="$root/$build/wine"
if [ -z "${INFLLM_TEST_MODEL:-}" ]; then
    python scripts/make_gguf.py small-deep "$build/small-deep.gguf"
    export INFLLM_TEST_MODEL=$root/$build/small-deep.gguf GTEST_FILTER='-*InfllmWhole*'
    [ "$target" != windows ] || INFLLM_TEST_MODEL="Z:$INFLLM_TEST_MODEL"
fi
# shellcheck disable=SC2086 # arguments
ctest --test-dir "$build" --output-on-failure --no-tests=error ${INFLLM_CTEST:---parallel 2}
