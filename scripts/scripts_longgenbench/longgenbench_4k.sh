#!/usr/bin/env bash
# SCOPE's table 1, 4K setting: longgenbench_4k.sh MODEL [option of sweep.py or run_longgenbench.py ...]
# A stopped sweep goes on where it was. PYTHON names another python.
set -euo pipefail
model=${1:?usage: longgenbench_4k.sh MODEL [option of sweep.py or run_longgenbench.py ...]}
cd "$(dirname "$0")/../.."
"${PYTHON:-python}" sweep.py scripts/scripts_longgenbench/longgenbench_4k.yaml --model_path "$model" "${@:2}"
