"""How far jobs are, read from their files: whichever processes write them, on whatever machine."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope.evaluation.results import SLICES
from scope.harness.data import select_rows
from scope.harness.jobs import Job
from scope.harness.results import ResultFile


@dataclass(frozen=True)
class Standing:
    """Where all jobs together stand.

    Attributes:
        examples: finished.
        tokens_per_second: generated since the watch began, by all processes together, as far as
            finished examples tell.
    """

    examples: int
    tokens_per_second: float


class Watch:
    """Looks after some jobs.

    Attributes:
        total: their examples.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._examples = [(job, len(select_rows(job))) for job in jobs]
        self.total = sum(examples for _, examples in self._examples)
        self._began, self._tokens_before = time.monotonic(), self._tokens()

    def look(self) -> Standing:
        """Where the jobs stand now."""
        done = 0
        for job, examples in self._examples:
            files = [folder / job.result_file.name for folder in _folders(job)]
            # While slices are joined, some examples are in two files.
            done += min(examples, sum(ResultFile(file).count() for file in files))
        seconds = time.monotonic() - self._began
        return Standing(done, (self._tokens() - self._tokens_before) / seconds)

    def _tokens(self) -> int:
        return sum(
            start["tokens"]
            for job, _ in self._examples
            for folder in _folders(job)
            for start in _starts(folder)
        )


def _folders(job: Job) -> Iterator[Path]:
    """The job's own, and those of its slices."""
    yield job.folder
    yield from job.folder.glob(f"{SLICES}/*")


def _starts(folder: Path) -> list[dict[str, Any]]:
    with suppress(OSError, ValueError, KeyError, TypeError):  # not there, or not ours
        return json.loads((folder / "run.json").read_bytes())["starts"]
    return []
