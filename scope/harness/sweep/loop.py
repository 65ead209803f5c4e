"""The scheduling loop: free workers take units until none is left."""

from collections import Counter
from collections.abc import Callable, Sequence

from scope.harness.sweep.queue import Loading, UnitQueue
from scope.harness.sweep.unit import Unit
from scope.harness.sweep.workers import Ended, Event, Lost, Ready, Workers

_ATTEMPTS = 4


def do_units(
    units: Sequence[Unit],
    workers: Workers,
    on_events: Callable[[list[Event]], object] = lambda events: None,
) -> list[Unit]:
    """Do all units.

    One whose worker is lost is begun again by another, and gives up after four workers. One that
    ends with an error is not, and neither is what waits for it.

    Args:
        units: what to do.
        workers: who does it.
        on_events: is told what happened, now and then also that nothing did.

    Returns:
        The units that were not finished.
    """
    queue, attempts = UnitQueue(units), Counter[Unit]()
    failed: list[Unit] = []
    free: list[int] = []
    running: set[Unit] = set()
    loaded: dict[int, Loading] = {}
    while True:
        for worker in sorted(free):
            others = [model for other, model in loaded.items() if other != worker]
            unit = queue.take(loaded.get(worker), others)
            if unit is None:
                break
            free.remove(worker)
            running.add(unit)
            loaded[worker] = unit.job.loading
            workers.start(worker, unit, attempts[unit])
        if not running and (free or not queue):
            return failed + queue.abandon()
        events = workers.wait()
        for event in events:
            match event:
                case Ready(worker):
                    free.append(worker)
                case Ended(worker, unit, error):
                    free.append(worker)
                    running.remove(unit)
                    if error is None:
                        queue.finish(unit)
                    else:
                        failed.append(unit)
                case Lost(worker, unit):
                    loaded.pop(worker, None)
                    if worker in free:
                        free.remove(worker)
                    if unit is not None:
                        running.remove(unit)
                        attempts[unit] += 1
                        if attempts[unit] < _ATTEMPTS:
                            queue.put_back(unit)
                        else:
                            failed.append(unit)
        on_events(events)
