#!/usr/bin/env bash
# Builds MMLU+ (30 questions a prompt) and MMLU++ (60) under data/LongGenBench/mmlu.
# Another number of questions: K=4 bash create_mmlu.sh
# Arguments go on to the builder, for example: --source FILE --style upstream --prompt_path FILE
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
for k in ${K:-30 60}; do
  "${PYTHON:-python}" -m scope.longgenbench.build mmlu --k "$k" "$@"
done
