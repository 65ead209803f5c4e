"""Jobs that decode in one batch: the more rows share a step, the less often weights are read."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scope.harness.jobs import Job


def can_share_a_batch(one: Job, other: Job) -> bool:
    """Whether two jobs differ in no more than what they read and where they write."""
    return _without_data(one) == _without_data(other)


def batches_of(jobs: Sequence[Job], together: bool) -> list[tuple[Job, ...]]:
    """The jobs that run at a time, in the order of their first.

    Args:
        jobs: all of a command's.
        together: whether those that can share a batch do.
    """
    batches: list[tuple[Job, ...]] = []
    for job in jobs:
        own = next((b for b in batches if together and can_share_a_batch(b[0], job)), None)
        if own is None:
            batches.append((job,))
        else:
            batches[batches.index(own)] = (*own, job)
    return batches


def _without_data(job: Job) -> Job:
    return replace(
        job,
        dataset="",
        data_file=Path(),
        folder=Path(),
        max_num_examples=None,
        drop_rows=(),
        compare_with=None,
    )
