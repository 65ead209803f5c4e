#!/usr/bin/env bash
# Builds CSQA+ (40 questions a prompt) and CSQA++ (80) under data/LongGenBench/csqa.
# Another number of questions: K=4 bash create_csqa.sh
# Arguments go on to the builder, for example: --source FILE --style upstream --prompt_path FILE
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
for k in ${K:-40 80}; do
  "${PYTHON:-python}" -m scope.longgenbench.build csqa --k "$k" "$@"
done
