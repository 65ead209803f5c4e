"""Workers that only pretend, on a clock of their own: plans, and shares of an array of jobs."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scope.harness.sweep.loop import do_units
from scope.harness.sweep.queue import Loading
from scope.harness.sweep.unit import Unit
from scope.harness.sweep.workers import Ended, Event, Ready


@dataclass(frozen=True)
class Turn:
    """One unit on one worker's time line, in seconds from the start.

    Attributes:
        loaded: when its model was there; equal to ``started`` where it was already.
    """

    worker: int
    unit: Unit
    started: float
    loaded: float
    ended: float


class SimulatedWorkers:
    """Workers whose units take as long as a function says.

    Args:
        count: how many.
        load: seconds that loading a unit's model takes.
        run: seconds that a unit takes after that.

    Attributes:
        turns: what was done, in the order of beginning.
    """

    def __init__(
        self, count: int, load: Callable[[Unit], float], run: Callable[[Unit], float]
    ) -> None:
        self.turns: list[Turn] = []
        self._load, self._run = load, run
        self._models: dict[int, Loading] = {}
        self._now = 0.0
        self._new: list[Event] = [Ready(worker) for worker in range(count)]
        self._ends: list[tuple[float, int, Unit]] = []

    def start(self, worker: int, unit: Unit, attempt: int) -> None:
        is_there = not unit.cost or self._models.get(worker) == unit.job.loading
        loaded = self._now if is_there else self._now + self._load(unit)
        self._models[worker] = unit.job.loading
        turn = Turn(worker, unit, self._now, loaded, loaded + self._run(unit))
        self.turns.append(turn)
        heapq.heappush(self._ends, (turn.ended, worker, unit))

    def wait(self) -> list[Event]:
        if self._new:
            new, self._new = self._new, []
            return new
        self._now, worker, unit = heapq.heappop(self._ends)
        return [Ended(worker, unit)]


def shares(units: Sequence[Unit], count: int) -> list[list[Unit]]:
    """The units that each of some workers would take, if costs were times and loading the time of
    the smallest unit: the same for whoever asks.
    """
    least = min((unit.cost for unit in units if unit.cost), default=0)
    workers = SimulatedWorkers(count, lambda unit: least, lambda unit: unit.cost)
    do_units(units, workers)
    return [[turn.unit for turn in workers.turns if turn.worker == i] for i in range(count)]
