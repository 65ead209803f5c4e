#!/usr/bin/env bash
# Runs pairs of prefill compressor and decoding strategy at W = 512 and 1024, and scores them.
#
#   sweep.sh SETTING K C "DATASETS" "METHOD+STRATEGY ..." MODEL [option of run_longgenbench.py ...]
#
# SETTING names the folder below results/runs. Environment: WINDOWS (default "512 1024"),
# PYTHON (default python). A stopped sweep goes on where it was.
set -euo pipefail
if [ "$#" -lt 6 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
setting=$1 k=$2 capacity=$3 datasets=$4 pairs=$5 model=$6
shift 6
cd "$(dirname "$0")/../.."
results=results/runs/$setting
recent=256

# What stands beside `runs`, each run takes as far as its methods read it.
grid=$(mktemp)
trap 'rm -f "$grid"' EXIT
cat > "$grid" <<YAML
K: $k
dataset: [${datasets// /, }]
max_capacity_prompts: $capacity
decoding_recent_size: $recent
runs:
YAML
for window in ${WINDOWS:-512 1024}; do
    for pair in $pairs; do
        cat >> "$grid" <<YAML
  - method: ${pair%+*}
    decoding_metric: ${pair#*+}
    save_dir: $results/${pair}_decoding_window_${window}_recent_window_${recent}
YAML
        if [ "${pair#*+}" != None ]; then
            echo "    decoding_window_size: $window" >> "$grid"
        fi
    done
done
"${PYTHON:-python}" run_longgenbench.py --config "$grid" --model_path "$model" "$@"
"${PYTHON:-python}" eval_gen.py --results_dir "$results"
