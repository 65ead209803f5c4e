"""One worker, in this process."""

import sys
from collections.abc import Iterable

from scope.errors import ScopeError
from scope.harness.models import Models
from scope.harness.run import join_slices, run_jobs
from scope.harness.sweep.unit import Unit
from scope.harness.sweep.workers import Ended, Event, Ready

# Seconds that a lost worker may need to let go of its folder.
_PATIENCE = 60


def do_unit(worker: int, unit: Unit, models: Models, attempt: int = 0) -> Ended:
    """Do one unit here: what stops it is told, and the next one may do better."""
    try:
        if unit.whole is not None and unit.written:
            return Ended(worker, unit)
        if unit.slices:
            join_slices(unit.job, unit.slices, models)
        runs = run_jobs(unit.jobs, models, patience=_PATIENCE if attempt else 0)
    except ScopeError as error:
        return Ended(worker, unit, str(error))
    return Ended(worker, unit, warnings=tuple(text for run in runs for text in run["warnings"]))


class ThisProcess:
    """The only worker of a sweep without a cluster; a unit is done while one waits for it."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._unit: Unit | None = None

    def start(self, worker: int, unit: Unit, attempt: int) -> None:
        self._unit = unit

    def wait(self) -> list[Event]:
        if self._unit is None:
            return [Ready(0)]
        unit, self._unit = self._unit, None
        return [do_unit(0, unit, self._models)]


def tell(events: Iterable[Event]) -> None:
    """Print what units have to say."""
    for event in events:
        if isinstance(event, Ended):
            for warning in event.warnings:
                print(f"warning: {warning}", file=sys.stderr)
            if event.error is not None:
                print(f"error: {event.error}", file=sys.stderr)
