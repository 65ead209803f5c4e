#!/usr/bin/env bash
# SCOPE's table 2, strategies over other prefills: gsm8k_plug_in.sh MODEL [option ...]
set -euo pipefail
: "${1:?usage: gsm8k_plug_in.sh MODEL [option of run_longgenbench.py ...]}"
pairs=$(for method in ALLKV SnapKV PyramidKV; do
    for strategy in None slide adaptive discontinuous; do echo "$method+$strategy"; done
done)
exec bash "$(dirname "$0")/sweep.sh" gsm8k_plug_in 30 2048 gsm8k "$pairs" "$@"
