#!/usr/bin/env python
"""Run a grid of configurations in one process, as one of an array of jobs, or on a cluster.

python sweep.py GRID.yaml
python sweep.py GRID.yaml --shard 3/16
"""

import sys

from scope.harness.sweep.command import main

if __name__ == "__main__":
    sys.exit(main())
