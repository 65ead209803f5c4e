"""Which unit a free worker takes."""

from collections.abc import Collection, Sequence
from pathlib import Path

from scope.harness.sweep.unit import Unit

Loading = tuple[str, ...]


class UnitQueue:
    """Units that wait for a worker.

    A worker stays with the model that it has loaded while there is work for it. Then it takes the
    model with most work for each worker that has it. Of one model, the largest unit goes first, so
    that the small ones fill the gaps at the end.
    """

    def __init__(self, units: Sequence[Unit]) -> None:
        self._waiting = sorted(units, key=lambda unit: -unit.cost)  # stable: equals in their order
        self._unfinished = {file for unit in units for file in _files(unit)}

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, loaded: Loading | None, elsewhere: Collection[Loading]) -> Unit | None:
        """The next unit for a worker, or None while there is none that can begin.

        Args:
            loaded: what the worker's model was loaded from, if it has one.
            elsewhere: the same of all other workers that have one.
        """
        ready = [unit for unit in self._waiting if not unit.after & self._unfinished]
        if not ready:
            return None
        work: dict[Loading, int] = {}
        for unit in ready:
            work[unit.job.loading] = work.get(unit.job.loading, 0) + unit.cost
        shares = {model: cost / (1 + list(elsewhere).count(model)) for model, cost in work.items()}
        model = loaded if loaded in work else max(shares, key=lambda model: shares[model])
        unit = next(unit for unit in ready if unit.job.loading == model)
        self._waiting.remove(unit)
        return unit

    def put_back(self, unit: Unit) -> None:
        """Let another worker do what one has not ended; it goes first."""
        self._waiting.insert(0, unit)

    def finish(self, unit: Unit) -> None:
        """Let units begin that have waited for this one."""
        self._unfinished -= _files(unit)

    def abandon(self) -> list[Unit]:
        """Give up all that is left."""
        left, self._waiting = self._waiting, []
        return left


def _files(unit: Unit) -> set[Path]:
    return {job.result_file.resolve() for job in unit.jobs}
