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
        together: whether those that can share a batch do, but for one that would begin before what
            it is compared with is there.
    """
    batches: list[tuple[Job, ...]] = []
    for job in jobs:
        shared = (
            place
            for place, batch in enumerate(batches)
            if can_share_a_batch(batch[0], job) and not _writes_reference(batches[place:], job)
        )
        place = next(shared, None) if together else None
        if place is None:
            batches.append((job,))
        else:
            batches[place] += (job,)
    return batches


def _writes_reference(batches: Sequence[Sequence[Job]], job: Job) -> bool:
    """Whether one of the batches writes what a job is compared with."""
    if job.compare_with is None:
        return False
    reference = job.compare_with.resolve()
    return any(one.result_file.resolve() == reference for batch in batches for one in batch)


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
