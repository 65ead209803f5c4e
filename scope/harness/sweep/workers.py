"""What the scheduling loop knows of workers, whatever they are."""

from dataclasses import dataclass
from typing import Protocol

from scope.harness.sweep.unit import Unit


@dataclass(frozen=True)
class Ready:
    """A worker can take its first unit."""

    worker: int


@dataclass(frozen=True)
class Ended:
    """A worker has done what it could of a unit, and can take another.

    Attributes:
        error: what kept it from being finished; None if nothing did.
        warnings: what the run had to say.
    """

    worker: int
    unit: Unit
    error: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lost:
    """A worker is gone.

    Attributes:
        unit: what it was doing, if anything.
    """

    worker: int
    unit: Unit | None


Event = Ready | Ended | Lost


class Workers(Protocol):
    """Processes, or what stands for them, that do one unit at a time."""

    def start(self, worker: int, unit: Unit, attempt: int) -> None:
        """Give a worker that is free a unit; ``attempt`` counts from 0."""

    def wait(self) -> list[Event]:
        """What has happened, at once or after a while; nothing is an answer too."""
