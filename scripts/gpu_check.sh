#!/usr/bin/env bash
# Everything that needs a GPU: builds for the card at hand, checks against the CPU, measures, and prints one table last.
#
#   bash scripts/gpu_check.sh                  all parts, under 8 minutes after the build on a data-centre GPU
#   bash scripts/gpu_check.sh verify gather    these parts; figures of the others are kept
#
# Parts: verify, gather, speed, long, replay (see scripts/gpu_check.py). Figures go to build/gpu/check.jsonl.
#   INFLLM_GPU_PYTHON  a Python that has infllm-cpp with CUDA, numpy and gguf: nothing is built
#   INFLLM_GPU_OUT     folder for the program, the models and the figures; default: build/gpu
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

out=${INFLLM_GPU_OUT:-build/gpu}
mkdir -p "$out"

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader ||
    fail "nvidia-smi finds no GPU: this script is for machines that have one."

if [ -n "${INFLLM_GPU_PYTHON:-}" ]; then
    python=$INFLLM_GPU_PYTHON
else
    command -v nvcc > /dev/null || fail "nvcc not found: install the CUDA toolkit and put it on PATH."
    # shellcheck disable=SC2119 # its argument is not ours
    check_tools
    make_venv
    python=python
    step "Building with CUDA, for this card alone"
    CMAKE_ARGS="-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=native ${CMAKE_ARGS:-}" \
        python -m pip install --quiet -C build-dir=build/gpu . gguf
fi
if [ ! -x "$out/bench-gather" ]; then
    step "Building the bandwidth test"
    ggml=third_party/llama.cpp/ggml
    mapfile -t flags < csrc/cuda/nvcc-flags.txt
    nvcc -std=c++17 -O3 -arch=native "${flags[@]}" -DGGML_CUDA_INFLLM -I$ggml/include -I$ggml/src -I$ggml/src/ggml-cuda \
        -Icsrc/cuda tests/cuda/bench-gather.cu -lcublas -lcuda -o "$out/bench-gather"
fi
export INFLLM_GATHER_BENCH="$out/bench-gather"

check() {
    step "$*"
    "$python" scripts/gpu_check.py "$@" --json "$out/check.jsonl" --models "$out/models" > "$out/last.log" 2>&1 ||
        grep -q '^### goals' "$out/last.log" || { cat "$out/last.log"; fail "This part failed."; }
    grep -E '^(verify|gather|speed|replay):' "$out/last.log" || true
}

if [ $# -eq 0 ]; then
    set -- verify gather speed long replay
fi
for part in "$@"; do
    case $part in
        # K and V of 1M tokens in f16 are 128 GiB: more than most hosts can pin
        long) check speed --modes d --kv q8_0 --depths 8192,1048576 ;;
        *)    check "$part" ;;
    esac
done

"$python" scripts/gpu_check.py table --json "$out/check.jsonl"
