#!/usr/bin/env bash
# Builds MATH-500 and AIME 2024 and 2025 under data/LongGenBench, one problem a prompt:
#
#   create_problems.sh [DATASET [option ...]]     default: math500, aime24 and aime25 from the hub
#
# For example: create_problems.sh aime25 --source aime25.jsonl
# Then: run_longgenbench.py --dataset aime25 --K 1 --prompt_style chat ...
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
for dataset in ${1:-math500 aime24 aime25}; do
  "${PYTHON:-python}" -m scope.longgenbench.problems "$dataset" "${@:2}"
done
