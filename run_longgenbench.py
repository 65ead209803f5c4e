#!/usr/bin/env python
"""Generate LongGenBench answers with a compressed KV cache; ``--help`` lists all options.

Without arguments it runs the demo: scripts/demo.yaml, on the model that comes with the project.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

DEMO = Path(__file__).parent / "scripts" / "demo.yaml"


def _stop(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped before anything had begun\n")
    os._exit(128 + number)


if __name__ == "__main__":
    # The imports take seconds, and some of them would swallow an exception.
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)
    from scope.harness.cli import main

    signal.signal(signal.SIGINT, interrupt)
    sys.exit(main(sys.argv[1:] or ["--config", str(DEMO)]))
