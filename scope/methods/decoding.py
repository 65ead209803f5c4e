"""The interface of decoding strategies: how much may stay after step t, and which tokens may go?

A strategy never sees a tensor: it counts on the host, with numpy integers, so whether a selection
is due is known without waiting for the device.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Score = Literal["current", "cumulative", "recent", "random"]

# A target no length reaches: nothing is evicted.
NEVER = np.iinfo(np.int64).max // 2


@dataclass
class Occupancy:
    """How many tokens a cache of N layers and B rows holds, after the new token was appended.

    Attributes:
        step: ``[B]`` decode step t of each row, 1-based; 0 while its prompt is being read.
        lengths: ``[N, B]`` tokens held.
        base: ``[N, B]`` tokens that a strategy's own budget comes on top of: those kept of the
            prompt, or for unified strategies the capacity of the layer.
        skipped: ``[B]`` layer calls that the shared clock has let pass since the last selection.
        selecting: ``[B]`` layers that have selected since the shared clock ran out.
    """

    step: Counts
    lengths: Counts
    base: Counts
    skipped: Counts
    selecting: Counts


@dataclass(frozen=True)
class DecodingStrategy(ABC):
    """Base of all decoding strategies; a subclass declares the settings it reads as fields.

    Attributes:
        unified: whether prompt and decode tokens share one budget.
        evicts: whether any token ever leaves.
        ranks_by: the score that decides between tokens, where the configuration leaves it open.
    """

    name: ClassVar[str]
    unified: ClassVar[bool] = False
    evicts: ClassVar[bool] = True

    @property
    def ranks_by(self) -> Score:
        return "current"

    def unified_budgets(self, capacities: list[int]) -> list[int]:
        """What a unified strategy adds its window to, layer by layer."""
        return capacities

    def protected(self, frozen: Counts, base: Counts) -> Counts:
        """How many of the first entries of each layer and row never leave.

        Args:
            frozen: ``[N, B]`` entries of the prompt pool.
            base: as in `Occupancy`.
        """
        return np.zeros_like(base) if self.unified else frozen

    @abstractmethod
    def pool(self, step: Counts) -> Counts:
        """Tokens beyond the base that may stay after step t, elementwise for ``[B]`` steps."""

    def targets(self, now: Occupancy) -> Counts:
        """``[N, B]`` length that each layer is cut to where it is longer; NEVER if none is due."""
        return now.base + self.pool(now.step)
