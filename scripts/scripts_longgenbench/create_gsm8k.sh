#!/usr/bin/env bash
# Builds GSM8K+ (30 questions a prompt) and GSM8K++ (60) under data/LongGenBench/gsm8k.
# Another number of questions: K=4 bash create_gsm8k.sh
# Arguments go on to the builder, for example: --source FILE --style upstream --prompt_path FILE
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
for k in ${K:-30 60}; do
  "${PYTHON:-python}" -m scope.longgenbench.build gsm8k --k "$k" "$@"
done
