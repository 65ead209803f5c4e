#!/usr/bin/env bash
# Sets up .venv, then runs the linter, the type checker and all tests; arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export HF_HUB_OFFLINE=1
ruff check .
ruff format --check .
mypy
python -m pytest "$@"
