"""Chance, again at every step."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from scope.kernels.tensors import Kernel
from scope.methods.score import Slots
from scope.scores.random import Random


@dataclass(frozen=True)
class FreshRandom(Random):
    """Every token draws a new number at every step: whoever is held is as likely to leave.

    Random Attention, arXiv 2609.03430. Where one token leaves at a time, one that came n steps ago
    is still held with a probability that falls exponentially in n; with ``random`` it does not
    depend on n.
    """

    name: ClassVar[str] = "fresh_random"
    about: ClassVar[str] = "any token that may leave is as likely to, drawn anew at every step"
    kernel: ClassVar[Kernel | None] = "fresh random"

    def worth(self, slots: Slots) -> Tensor:
        return super().worth(replace(slots, draw=slots.draw + 1_000_000_021 * slots.newest.long()))
