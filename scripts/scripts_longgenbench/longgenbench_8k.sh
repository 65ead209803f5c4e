#!/usr/bin/env bash
# SCOPE's table 1, 8K setting: longgenbench_8k.sh MODEL [option of run_longgenbench.py ...]
set -euo pipefail
: "${1:?usage: longgenbench_8k.sh MODEL [option of run_longgenbench.py ...]}"
exec bash "$(dirname "$0")/sweep.sh" longgenbench_8K 60 4096 "gsm8k mmlu csqa" \
    "ALLKV+None StreamingLLM+slm H2O+h2o PyramidInfer+pyramidinfer
     H2O+slide H2O+adaptive H2O+discontinuous" "$@"
