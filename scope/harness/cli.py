"""The command: plan or run every job of a command line, one loaded model for all."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from scope.errors import ScopeError
from scope.evaluation.evaluate import evaluate
from scope.evaluation.results import ResultFolder, find_result_folders
from scope.evaluation.tables import print_table
from scope.harness.command_line import Command, parse_command
from scope.harness.fit import fitted_jobs
from scope.harness.found import examples_of
from scope.harness.jobs import Job
from scope.harness.log import logged
from scope.harness.models import Models
from scope.harness.plan import make_plan
from scope.harness.ranks import check_splittable, own_folder, process_group
from scope.harness.results import ResultFile
from scope.harness.run import check_job, run_jobs
from scope.harness.signals import exit_code, stopped_by_signals
from scope.harness.together import batches_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 after a line about each thing that was wrong; 128 + n after signal n."""

    def work(jobs: list[Job]) -> int:
        command = parse_command(arguments)
        models = Models(split=command.tensor_parallel)
        if command.tensor_parallel and not command.dry_run:
            with process_group():
                jobs += checked_jobs(command, models)
                return _run_split(jobs, models)
        jobs += checked_jobs(command, models)
        return (_plan if command.dry_run else _run)(jobs, models, command)

    return exit_code_of(work)


def exit_code_of(work: Callable[[list[Job]], int]) -> int:
    """Do what a command asks for, and tell in a line what is wrong.

    Args:
        work: puts the command's jobs into the list that it is given, and gives the exit code.
    """
    jobs: list[Job] = []
    try:
        with stopped_by_signals():
            return work(jobs)
    except ScopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"stopped; {_kept(jobs)}start the same command again to go on", file=sys.stderr)
        return exit_code(interrupt)


def checked_jobs(command: Command, models: Models) -> list[Job]:
    """All jobs of a command, each with a folder of its own."""
    first: dict[object, Job] = {}
    for job in (job for run in command.runs for job in fitted_jobs(run, models)):
        other = first.setdefault(job.folder.resolve(), job)
        if other is not job:
            raise ScopeError(
                f"{other.label} and {job.label} on {job.dataset} would write into one folder, "
                f"{job.folder}; give each run its own --save_dir"
            )
    return list(first.values())


def _plan(jobs: list[Job], models: Models, command: Command) -> int:
    for batch in batches_of(jobs, command.together):
        lengths: list[int] = []
        for job in batch:
            config = models.config(job.model_path)
            own = [len(example.tokens) for example in examples_of(job, models)]
            print("\n".join(make_plan(job, config, own).lines(job)))
            lengths += own
        if len(batch) > 1:
            most = make_plan(batch[0], config, lengths).largest_batch
            names = ", ".join(job.dataset for job in batch)
            print(f"{names} in one batch: at most {most} sequences fit on {batch[0].device}")
    return 0


def _run(jobs: list[Job], models: Models, command: Command) -> int:
    """Check all jobs, then run one batch after the other, then score what is there."""
    check_jobs(jobs, models)
    batches = batches_of(jobs, command.together)
    with scored(jobs), logged(jobs, command.log_to):
        failed = [job for batch in batches if not _run_batch(batch, models) for job in batch]
    if failed and len(jobs) > 1:
        names = ", ".join(f"{job.label} on {job.dataset}" for job in failed)
        print(f"error: not finished: {names}", file=sys.stderr)
    return 2 if failed else 0


def _run_split(jobs: list[Job], models: Models) -> int:
    """The same with the model split over the processes; what stops one job stops them all."""
    for job in jobs:
        check_splittable(job)
    check_jobs(jobs, models)
    for job in jobs:
        with own_folder(job) as own:
            _warn(run_jobs([own], models))
    if dist.get_rank() == 0:
        _score(jobs)
    return 0


def check_jobs(jobs: Sequence[Job], models: Models) -> None:
    """See that all can be run; each may be compared with one before it."""
    for position, job in enumerate(jobs):
        check_job(job, models, coming=[job.result_file.resolve() for job in jobs[:position]])


@contextmanager
def scored(jobs: list[Job]) -> Iterator[None]:
    """Score what is there in the end, also before the traceback of a mistake in the program."""
    try:
        yield
    except Exception:
        _score(jobs)
        raise
    _score(jobs)


def _run_batch(jobs: Sequence[Job], models: Models) -> bool:
    """Whether the runs came to their end; what stopped them is told, and the next may do better."""
    try:
        _warn(run_jobs(jobs, models))
    except ScopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    return True


def _warn(runs: Iterable[Mapping[str, Any]]) -> None:
    for run in runs:
        for warning in run["warnings"]:
            print(f"warning: {warning}", file=sys.stderr)


def _score(jobs: list[Job]) -> None:
    folders: dict[object, ResultFolder] = {}
    for job in jobs:
        if job.result_file.exists():
            try:
                folders[job.folder.parent] = find_result_folders(job.folder.parent)[0]
            except ScopeError as error:
                print(f"warning: not scored: {error}", file=sys.stderr)
    evaluation = evaluate(folders.values())
    if evaluation.rows:
        print_table(evaluation.rows)
    for message in [*evaluation.errors, *evaluation.warnings]:
        print(f"warning: {message}", file=sys.stderr)


def _kept(jobs: list[Job]) -> str:
    counts = [count for job in jobs if (count := ResultFile(job.result_file).count())]
    if not counts:
        return ""
    return f"{sum(counts)} finished examples in {len(counts)} result files are kept; "
