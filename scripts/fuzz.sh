#!/usr/bin/env bash
# Runs the fuzz targets (tests/fuzz) under AddressSanitizer and UBSan, each for some seconds, two at a time:
#
#     scripts/fuzz.sh [--seconds N] [--clang] [TARGET ...]
#
# --clang: by libFuzzer, with clang, which finds its way into new code; its inputs are kept in build/fuzz/corpus. Without it a driver
# of ours changes seeds at random, in the build of the tests under sanitizers.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

seconds=60
build=build/sanitize
options=()
targets=()
while [ $# -gt 0 ]; do
    case $1 in
        --seconds) seconds=$2; shift ;;
        --clang)
            build=build/fuzz
            options=(-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ -DINFLLM_LIBFUZZER=ON)
            ;;
        *) targets+=("$1") ;;
    esac
    shift
done
if [ ${#targets[@]} -eq 0 ]; then
    for source in tests/fuzz/fuzz-*.cpp; do
        targets+=("$(basename "$source" .cpp)")
    done
fi

step "Building fuzz targets in $build"
mkdir -p "$build"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Debug -DINFLLM_SANITIZE=ON -DINFLLM_BUILD_TESTS=ON "${options[@]}" > /dev/null
cmake --build "$build" --target "${targets[@]}" > "$build/fuzz.log" 2>&1 ||
    { tail -n 40 "$build/fuzz.log"; fail "The build failed: see $build/fuzz.log."; }

TMPDIR=$(mktemp -d) # for the files of the targets
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
# no more memory at once than what is read can be meant to need, a broken assertion is told like all else
export ASAN_OPTIONS=max_allocation_size_mb=256:handle_abort=1:detect_leaks=1
export UBSAN_OPTIONS=print_stacktrace=1

# run_target TARGET
run_target() {
    local args=(--seconds "$seconds")
    if [ "$build" = build/fuzz ]; then
        mkdir -p "$build/corpus/$1"
        args=("-max_total_time=$seconds" -max_len=100000 -timeout=20 "-artifact_prefix=$build/$1-" "$build/corpus/$1")
    fi
    if "$build/bin/$1" "${args[@]}" > "$TMPDIR/$1.log" 2>&1; then
        printf '  %s: %s\n' "$1" "$(tail -n 1 "$TMPDIR/$1.log")"
    else
        tail -n 60 "$TMPDIR/$1.log"
        echo "$1 has failed" >&2
        return 1
    fi
}
export -f run_target
export build seconds

step "Fuzzing, ${#targets[@]} targets of $seconds s"
# shellcheck disable=SC2016 # expanded by the shell that is started
printf '%s\n' "${targets[@]}" | xargs -n 1 -P 2 bash -c 'run_target "$0"' || fail "A fuzz target has failed: see above."
