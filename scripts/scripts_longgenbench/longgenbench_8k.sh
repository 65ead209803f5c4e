#!/usr/bin/env bash
# SCOPE's table 1, 8K setting: longgenbench_8k.sh MODEL [option of sweep.py or run_longgenbench.py ...]
# A stopped sweep goes on where it was. PYTHON names another python.
set -euo pipefail
model=${1:?usage: longgenbench_8k.sh MODEL [option of sweep.py or run_longgenbench.py ...]}
cd "$(dirname "$0")/../.."
"${PYTHON:-python}" sweep.py scripts/scripts_longgenbench/longgenbench_8k.yaml --model_path "$model" "${@:2}"
