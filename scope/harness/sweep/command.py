"""The command of sweep.py: plan, share out or do all units of a grid."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scope.errors import ScopeError
from scope.harness.cli import check_jobs, checked_jobs, exit_code_of, scored
from scope.harness.command_line import Parser, parse_command
from scope.harness.jobs import Job
from scope.harness.log import logged
from scope.harness.models import Models
from scope.harness.plan import check_plan
from scope.harness.progress import progress
from scope.harness.sweep.local import ThisProcess, tell
from scope.harness.sweep.loop import do_units
from scope.harness.sweep.ray_workers import RayWorkers, cluster, sizes
from scope.harness.sweep.simulated import shares
from scope.harness.sweep.unit import Unit, units_of
from scope.harness.sweep.workers import Event
from scope.harness.watch import Watch


@dataclass(frozen=True)
class _Shard:
    """The i-th of n shares, from 0."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "_Shard":
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise argparse.ArgumentTypeError(f"{text!r}; expected i/n, with i from 0 to n - 1")
        return cls(int(index), int(count))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 after a line about each thing that was wrong; 128 + n after signal n."""

    def work(jobs: list[Job]) -> int:
        own, others = _parser().parse_known_args(arguments)
        models = Models()
        command = parse_command(["--config", str(own.grid), *others])
        if command.tensor_parallel:
            raise ScopeError(
                "--tensor_parallel goes with torchrun and run_longgenbench.py --config GRID"
            )
        jobs += checked_jobs(command, models)
        if own.ray is not None and own.shard is not None:
            raise ScopeError("--ray and --shard both share the units out; give one of them")
        units = units_of(jobs, models, own.slice, command.together)
        if own.dry_run:
            for job in jobs:
                check_plan(job, models.config(job.model_path))
            _print_plan(units, own.shard.count if own.shard else own.workers or 1)
            return 0
        check_jobs(jobs, models)
        with scored(jobs), logged(jobs, command.log_to):
            unfinished = _do(units, own, models)
        if unfinished:
            names = ", ".join(unit.name for unit in unfinished)
            print(f"error: not finished: {names}", file=sys.stderr)
        return 2 if unfinished else 0

    return exit_code_of(work)


def _do(units: list[Unit], own: argparse.Namespace, models: Models) -> list[Unit]:
    """The units that were not finished, of those that are this process's to do."""
    if own.ray is not None:
        return _do_on_cluster(units, own)
    if own.shard is None:
        return do_units(units, ThisProcess(models), tell)
    mine = _shares(units, own.shard.count)[own.shard.index]
    unfinished = do_units(mine, ThisProcess(models), tell)
    # Whoever ends last finds all slices of a data set, and joins them.
    joins = [unit for unit in units if unit.slices and unit.can_join]
    return unfinished + do_units(joins, ThisProcess(models), tell)


def _do_on_cluster(units: list[Unit], own: argparse.Namespace) -> list[Unit]:
    watch = Watch([job for unit in units for job in unit.jobs if job.rows is None])
    with cluster(own.ray) as ray:
        workers = RayWorkers(ray, *sizes(ray, own.workers, own.gpus_per_worker))
        with progress("all units", watch.total, watch.look().examples) as bar:

            def show(events: list[Event]) -> None:
                tell(events)
                standing = watch.look()
                bar.set_postfix_str(f"{standing.tokens_per_second:.1f} tokens/s", refresh=False)
                bar.update(standing.examples - bar.n)

            return do_units(units, workers, show)


def _shares(units: list[Unit], count: int) -> list[list[Unit]]:
    """Without the units that join slices, which may be in several shares."""
    return shares([unit for unit in units if not unit.slices], count)


def _print_plan(units: list[Unit], count: int) -> None:
    for index, share in enumerate(_shares(units, count)):
        total = sum(unit.cost for unit in share)
        print(f"{index}/{count}: {len(share)} units")
        for unit in share:
            part = f"{unit.cost / total:4.0%}" if total else "    "
            files = ", ".join(str(job.result_file) for job in unit.jobs)
            print(f"  {part}  {Path(unit.job.model_path).name}  {unit.name}  {files}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="sweep.py",
        description="Run all configurations of a grid. Further options are those of "
        "run_longgenbench.py, and win over the file.",
        allow_abbrev=False,
    )
    parser.add_argument("grid", type=Path, help="YAML file: options, of which lists are products")
    parser.add_argument(
        "--dry_run", action="store_true", help="print the units of each shard or worker"
    )
    parser.add_argument(
        "--slice",
        type=_positive,
        metavar="N",
        help="cut data sets into units of N examples, best a multiple of --batch_size",
    )
    parser.add_argument(
        "--shard", type=_Shard.parse, metavar="i/n", help="do the i-th of n shares, from 0"
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="share the units out to a Ray cluster: its address, or auto for the one that runs "
        "here, or else a new one of this machine",
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="with --ray, how many (default: as many as the GPUs allow, or one a node without)",
    )
    parser.add_argument(
        "--gpus_per_worker",
        type=float,
        metavar="G",
        help="with --ray; a fraction lets several share one (default 1 where there are any)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of at least 1")
    return int(text)
