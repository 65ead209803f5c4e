"""A control: chance."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope.kernels.tensors import Kernel
from scope.methods.options import option
from scope.methods.score import Score, Slots


@dataclass(frozen=True)
class Random(Score):
    """A fixed number that is drawn for every token when it comes: a uniform sample stays.

    It depends on the seed, the row's prompt, the layer, the head and the token's rank, so a row
    draws the same in any batch, and every prompt and every seed draws its own.
    """

    name: ClassVar[str] = "random"
    about: ClassVar[str] = "control: a uniform sample stays, drawn anew for every seed and prompt"
    kernel: ClassVar[Kernel | None] = "random"

    seed: int = option(42, "seed of scores that draw")

    def worth(self, slots: Slots) -> Tensor:
        return slots.drawn()
