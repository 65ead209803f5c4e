#!/usr/bin/env bash
# Draws a task that needs what was generated, for outputs of 4K and of 8K tokens:
#
#   create_task.sh TASK [option ...]     TASK: notes, ledger, dfs, countdown or paths
#
# Options go on to the builder, for example: --level hard --k 24 --num_prompts 16 --seed 1
# Then: run_longgenbench.py --data_dir data/tasks/easy --dataset TASK --K 30 --prompt_style chat ...
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m scope.longgenbench.draw "$@"
