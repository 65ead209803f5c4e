"""The starts of a run, as run.json lists them: when, where, with what, and what each took."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from scope.harness.jobs import Job


def new_start(job: Job, beside: Sequence[Job] = ()) -> dict[str, Any]:
    """A start that has generated nothing yet.

    Its ``tokens`` and ``seconds`` are brought up to date as each example ends, so that they stand
    when it is killed. ``batch_size`` is the one that it came to. Where other jobs decode in the
    same batch, ``beside`` names their data sets, ``seconds`` is this job's part of the batch's, in
    proportion to its tokens, and the work and its floor are the whole batch's.
    """
    device = f"{os.cpu_count()} cores of {platform.machine()}"
    if job.device.startswith("cuda"):
        device = torch.cuda.get_device_name(job.device)
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": {
            "device": device,
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "git_commit": _git_commit(),
        },
        **({"beside": [other.dataset for other in beside]} if beside else {}),
        "batch_size": None,
        "tokens": 0,
        "seconds": 0.0,
    }


def speed(starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tokens and time of all starts together.

    ``generated_tokens`` are all that were generated in ``seconds`` of decoding and reading prompts:
    where a start was stopped, also those of examples that a later one had to do again. A start that
    was killed counts up to the last example that it finished.
    """
    tokens = sum(start["tokens"] for start in starts)
    seconds = sum(start["seconds"] for start in starts)
    return {
        "generated_tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 2) if seconds else 0.0,
    }


def _git_commit() -> str | None:
    """This program's, where it runs from a git repository and git is installed."""
    command, folder = ["git", "rev-parse", "HEAD"], Path(__file__).parent
    try:
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return process.stdout.strip() or None
