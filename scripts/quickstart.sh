#!/usr/bin/env bash
# From a fresh checkout to an answer: installs into .venv, then runs the demo at 32,768 tokens.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

check_tools ""
make_venv

step "Building and installing infllm-cpp (about 5 minutes on 2 cores, the first time)"
with_progress python -m pip install --verbose .

step "Demo: a passkey hidden in a text four times longer than the model was trained for"
infllm demo "$@"

printf '\nNext: source .venv/bin/activate && infllm chat\n'
