#!/usr/bin/env bash
# cross_passkey.sh aarch64|armhf MODEL.gguf [N_CHARS]
# With the library that cross.sh built: examples/c reads a text with a pass key, saves it, and answers; a second process answers from
# the session. In QEMU, which computes about one token a second on each core with a model of 135M parameters.
#   N_CHARS  length of the text in characters: 15400 (4,091 tokens with the start, by the vocabulary of SmolLM2)
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
    aarch64) triplet=aarch64-linux-gnu   qemu=qemu-aarch64 ;;
    armhf)   triplet=arm-linux-gnueabihf qemu=qemu-arm ;;
    *)       fail "usage: scripts/cross_passkey.sh aarch64|armhf MODEL.gguf [N_CHARS]" ;;
esac
bin=build/cross-$1/bin upstream=third_party/llama.cpp
model=${2:?a model} n_chars=${3:-15400}
[ -e "$bin/libllama.so" ] || fail "$bin has no libllama.so: run scripts/cross.sh $1 first"
[ -e "$model" ] || fail "$model: no such file"

step "examples/c for $triplet"
"$triplet-gcc" -O2 -std=c11 -Icsrc/llama -I$upstream/include -I$upstream/ggml/include examples/c/long_context.c \
    -o "$bin/long_context" -L"$bin" -lllama -lggml -lggml-base -lm -Wl,-rpath-link,"$bin"

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
key=$("$python" - "$n_chars" "$dir/text" <<'EOF'
import runpy, sys
task = runpy.run_path("python/infllm_cpp/passkey.py")
text, key = task["make_passkey_prompt"](list, int(sys.argv[1]), depth=0.4) # a character is a token
open(sys.argv[2], "w").write("".join(text).removesuffix(task["QUESTION"]))
print(key)
EOF
)

for what in "reads the text" "opens the session"; do
    step "$qemu: a process $what, and answers"
    answer=$(time "$qemu" -L "/usr/$triplet" -E LD_LIBRARY_PATH="$bin" -E OMP_WAIT_POLICY=passive "$bin/long_context" "$model" \
        "$dir/text" "Which number is the pass key?" "$dir/session" n_local=512,topk=8)
    echo "$answer"
    [[ "$answer" == *$key* ]] || fail "The pass key is $key, not this."
done
