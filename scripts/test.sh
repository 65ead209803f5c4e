#!/usr/bin/env bash
# Sets up .venv, then runs the linter, the type checker and all tests, these in two processes;
# arguments go to pytest (`-n 0`: one process).
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export HF_HUB_OFFLINE=1
ruff check .
ruff format --check .
mypy
python -m pytest -n 2 --dist worksteal "$@"
