"""What a worker does in one go: jobs that share a batch, mostly one, or a slice of one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scope.errors import ScopeError
from scope.evaluation.results import SLICES
from scope.harness.data import select_rows
from scope.harness.jobs import Job
from scope.harness.models import Models
from scope.harness.plan import weight_bytes
from scope.harness.results import ResultFile
from scope.harness.together import batches_of


@dataclass(frozen=True, eq=False)
class Unit:
    """What one worker does at a time.

    Attributes:
        job: what to run.
        beside: what to run in the same batch.
        cost: tokens at most, times bytes of weights: how units compare, before any has run.
        after: result files of other units that must be finished first.
        slices: jobs whose results are joined into this one's.
        whole: the result file that this slice will be joined into.
    """

    job: Job
    cost: int
    after: frozenset[Path] = frozenset()
    beside: tuple[Job, ...] = ()
    slices: tuple[Job, ...] = ()
    whole: Path | None = None

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All that is run."""
        return self.job, *self.beside

    @property
    def written(self) -> bool:
        """Whether all its examples are in its result file, or in that which it was joined into."""
        rows = select_rows(self.job)
        wanted = {index for index, _ in (rows[slice(*self.job.rows)] if self.job.rows else rows)}
        files = [self.job.result_file] if self.whole is None else [self.job.result_file, self.whole]
        return any(
            wanted <= {record["index"] for record in ResultFile(file).records()} for file in files
        )

    @property
    def can_join(self) -> bool:
        """Whether all slices are written."""
        return all(Unit(part, 0, whole=self.job.result_file).written for part in self.slices)

    @property
    def name(self) -> str:
        rows = self.job.rows
        part = "" if rows is None else f", examples {rows[0]} to {rows[1] - 1}"
        return f"{self.job.label} on {', '.join(job.dataset for job in self.jobs)}{part}"


def units_of(
    jobs: Sequence[Job], models: Models, slice_size: int | None = None, together: bool = False
) -> list[Unit]:
    """The units of some jobs, in their order.

    Args:
        jobs: all that is to be done; one may be compared with the result of another.
        models: the command's.
        slice_size: most examples of one unit; a data set of more is cut, and one more unit joins
            its slices. None leaves data sets whole.
        together: whether jobs that can share a batch are one unit.

    Raises:
        ScopeError: for slices together.
    """
    if slice_size is not None and together:
        raise ScopeError("--slice cuts data sets, and --together joins them; give one of the two")
    results = {job.result_file.resolve() for job in jobs}
    units: list[Unit] = []
    for batch in batches_of(jobs, together):
        job, examples = batch[0], sum(len(select_rows(one)) for one in batch)
        bytes_read = weight_bytes(job, models.config(job.model_path))
        references = {one.compare_with.resolve() for one in batch if one.compare_with is not None}
        own = {one.result_file.resolve() for one in batch}
        after = frozenset(results & references - own)  # its own is there already, by `batches_of`
        slices: list[Job] = []
        if slice_size is not None and slice_size < examples:
            slices = [_slice(job, rows) for rows in _cuts(examples, slice_size)]
        for part in slices or [job]:
            first, end = part.rows or (0, examples)
            cost = (end - first) * job.max_new_tokens * bytes_read
            before = frozenset() if slices else after
            whole = job.result_file if slices else None
            units.append(Unit(part, cost, before, batch[1:], whole=whole))
        if slices:
            after |= {part.result_file.resolve() for part in slices}
            units.append(Unit(job, 0, after, slices=tuple(slices)))
    return units


def _cuts(examples: int, size: int) -> Iterable[tuple[int, int]]:
    return ((first, min(first + size, examples)) for first in range(0, examples, size))


def _slice(job: Job, rows: tuple[int, int]) -> Job:
    folder = job.folder / SLICES / f"{rows[0]}-{rows[1] - 1}"
    return replace(job, rows=rows, folder=folder, compare_with=None)
