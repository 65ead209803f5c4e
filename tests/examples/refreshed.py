"""Most steps attend to a few slots, chosen anew now and then (after RefreshKV): a strategy."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scope.methods.api import NEVER, Counts, Slots, Strategy, option


@dataclass(frozen=True)
class Refreshed(Strategy):
    """Nothing leaves; every few steps a full one chooses the slots of the next."""

    name: ClassVar[str] = "refreshed"
    about: ClassVar[str] = "everything, attended to in part"
    takes_score: ClassVar[bool] = False

    stride: int = option(4, "steps from one full step to the next")
    working_set: int = option(8, "slots attended to in between, besides newer ones")

    def pool(self, step: Counts) -> Counts:
        return np.full_like(step, NEVER)

    def full(self, step: Counts) -> NDArray[np.bool_]:
        return (step - 1) % self.stride == 0

    def select(self, slots: Slots) -> Tensor:
        best = slots.current.topk(min(self.working_set, slots.current.shape[-1]), dim=-1).indices
        return slots.current.new_zeros(slots.current.shape, dtype=bool).scatter(2, best, True)
