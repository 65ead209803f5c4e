#!/usr/bin/env bash
# All published tables for one model, in one process, with a report in the paper's layout:
#
#   published_grid.sh MODEL [option of sweep.py or run_longgenbench.py ...]
#
# For example: published_grid.sh MODEL --together --prompt_style chat --batch_size auto
# A stopped grid goes on where it was. PYTHON names another python.
set -euo pipefail
model=${1:?usage: published_grid.sh MODEL [option of sweep.py or run_longgenbench.py ...]}
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
status=0
"$python" sweep.py scripts/scripts_longgenbench/published_grid.yaml --model_path "$model" "${@:2}" || status=$?
# What is there is reported, also where a run has failed.
case $status in 0 | 2) ;; *) exit "$status" ;; esac
results=results/runs/published_grid
[ -d $results ] || exit "$status"  # nothing was begun
"$python" eval_gen.py --results_dir $results --baseline full --report $results/report
exit "$status"
