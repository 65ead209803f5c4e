#!/usr/bin/env python
"""Generate LongGenBench answers with a compressed KV cache; ``--help`` lists all options.

Without arguments it runs the demo: scripts/demo.yaml, on the model that comes with the project.
"""

import sys
from pathlib import Path

from scope.harness.cli import main

DEMO = Path(__file__).parent / "scripts" / "demo.yaml"

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["--config", str(DEMO)]))
