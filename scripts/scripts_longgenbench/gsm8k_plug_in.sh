#!/usr/bin/env bash
# SCOPE's table 2, strategies over other prefills: gsm8k_plug_in.sh MODEL [option of sweep.py or run_longgenbench.py ...]
# A stopped sweep goes on where it was. PYTHON names another python.
set -euo pipefail
model=${1:?usage: gsm8k_plug_in.sh MODEL [option of sweep.py or run_longgenbench.py ...]}
cd "$(dirname "$0")/../.."
"${PYTHON:-python}" sweep.py scripts/scripts_longgenbench/gsm8k_plug_in.yaml --model_path "$model" "${@:2}"
