#!/usr/bin/env python
"""Generate LongGenBench answers with a compressed KV cache; ``--help`` lists all options."""

import sys

from scope.harness.cli import main

if __name__ == "__main__":
    sys.exit(main())
