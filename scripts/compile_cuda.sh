#!/usr/bin/env bash
# Compiles every CUDA file of ours, for sm_80 and sm_90, without linking: no GPU is needed. Needs cmake and ninja.
#   bash scripts/compile_cuda.sh [llama.cpp tree]
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ggml="${1:-third_party/llama.cpp}/ggml"

if ! command -v nvcc > /dev/null; then
    echo "WARNING: there is no nvcc here: the CUDA code was NOT compiled." >&2
    exit 0
fi

mapfile -t flags < csrc/cuda/nvcc-flags.txt
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for arch in sm_80 sm_90; do
    for file in csrc/cuda/*.cu tests/cuda/*.cu; do
        echo "$file, $arch"
        nvcc -std=c++17 -arch=$arch -use_fast_math "${flags[@]}" -Werror all-warnings \
            -Xcompiler -Wall,-Wno-unused-function \
            -DGGML_CUDA_INFLLM -I"$ggml/include" -I"$ggml/src" -I"$ggml/src/ggml-cuda" -Icsrc/cuda \
            -c "$file" -o "$out/object.o" --keep --keep-dir "$out"
    done
done

# as the build compiles it, with its include paths and flags; its PTX lies beside the object
cmake -S . -B "$out/build" -G Ninja -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90 -DCMAKE_CUDA_FLAGS=--keep \
    -DINFLLM_LLAMA_CPP_DIR="$PWD/${ggml%/ggml}" -DINFLLM_PATCH=OFF > "$out/cmake.log" 2>&1 || { cat "$out/cmake.log"; exit 1; }
object=$(ninja -C "$out/build" -t targets all | sed -n 's/^\(.*infllm-pager\.cu\.o\):.*/\1/p')
echo "${object##*/}, by the build"
CCACHE_DISABLE=1 ninja -C "$out/build" "$object" > "$out/ninja.log" 2>&1 || { cat "$out/ninja.log"; exit 1; }

# a result that is not rounded as on the host may select other blocks
cat "$out"/*.ptx "$out"/build/*.ptx > "$out/ptx"
if grep -E '^\s*(fma\.|[a-z]+\.(approx|full))|\.ftz' "$out/ptx"; then
    echo "The CUDA code above is not rounded as on the host: see csrc/cuda/nvcc-flags.txt." >&2
    exit 1
fi
