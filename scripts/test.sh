#!/usr/bin/env bash
# Sets up and runs every test: style, C++ units, Python, and the C++ tests again under sanitizers.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

check_tools gtest
make_venv

step "Installing the test tools"
python -m pip install --quiet build cmake ninja pytest pytest-xdist ruff mypy gguf
# without libraries of its own: the tests point it at ours
CMAKE_ARGS="-DLLAMA_BUILD=OFF" python -m pip install --quiet --no-binary llama-cpp-python llama-cpp-python==0.3.36

step "ruff"
ruff check .
ruff format --check .

step "Building and installing infllm-cpp with its tests and llama.cpp's tools"
python -m pip install --quiet \
    -C build-dir=build/test -C cmake.define.INFLLM_BUILD_TESTS=ON -C cmake.define.INFLLM_BUILD_TOOLS=ON \
    -C cmake.define.GGML_RPC=ON '.[test]'

python -m pip install --quiet mkdocs-material 'mkdocstrings[python]' matplotlib

step "mypy"
mypy

step "Documentation"
NO_MKDOCS_2_WARNING=1 mkdocs build --quiet

step "Patch against several llama.cpp releases"
python scripts/check_patch.py

step "Source distribution, twice the same"
python scripts/build_sdist.py

infllm serve -- --help > /dev/null                      # its tests are skipped where it is not built
INFLLM_TEST_MODEL=$(infllm fetch)
export INFLLM_TEST_MODEL                                # SmolLM2-135M, for end-to-end tests
export INFLLM_TEST_BIN_DIR="$root/build/test/bin"       # llama-bench, llama-perplexity, ggml-rpc-server

step "CUDA code compiles for sm_80 and sm_90"
bash scripts/compile_cuda.sh

# several processes share the cores: threads that wait must not spin, and NumPy's are no help
export OMP_WAIT_POLICY=passive OPENBLAS_NUM_THREADS=1

step "C++ tests"
# end to end with real weights; the same again by the pager of devices with random ones, which are many times faster
random_weights=$root/build/small-deep.gguf
python scripts/make_gguf.py small-deep "$random_weights"
ctest --test-dir build/test --output-on-failure --no-tests=error --parallel 2 -E device-paged
INFLLM_TEST_MODEL=$random_weights ctest --test-dir build/test --output-on-failure --no-tests=error --parallel 2 -R device-paged

step "Python tests"
python -m pytest --numprocesses 2 --dist worksteal --durations 20

step "Building with AddressSanitizer and UBSan"
cmake -S . -B build/sanitize -G Ninja -DCMAKE_BUILD_TYPE=Debug -DINFLLM_SANITIZE=ON -DINFLLM_BUILD_TESTS=ON > /dev/null
# sanitizers make GCC warn thousands of times in its own and upstream's headers
cmake --build build/sanitize > build/sanitize/build.log 2>&1 ||
    { tail -n 40 build/sanitize/build.log; fail "The sanitizer build failed: see build/sanitize/build.log."; }

step "C++ tests under sanitizers"
# end to end with random weights, which are no worse for this, and not by devices: that is many times slower here
INFLLM_TEST_MODEL=$random_weights GTEST_FILTER='-*InfllmWhole*:*LlamaStreams.*/True*' \
    UBSAN_OPTIONS=print_stacktrace=1 ctest --test-dir build/sanitize --output-on-failure --no-tests=error --parallel 2 -E device

bash scripts/fuzz.sh --seconds 20 # a minute in all

step "All tests passed"
