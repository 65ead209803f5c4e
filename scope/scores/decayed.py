"""Attention summed with decay: an exponential average over steps."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope.errors import ScopeError
from scope.kernels.tensors import Kernel
from scope.methods.options import option
from scope.methods.score import Slots
from scope.scores.cumulative import Cumulative


@dataclass(frozen=True)
class Decayed(Cumulative):
    """``s <- decay * s + p``, p being this step's attention to the token.

    InertiaKV, arXiv 2609.03515, which has ``(1 - decay) * p``: the order is the same. A decay of 0
    is ``current``, of 1 ``cumulative``. A prompt's tokens go on from what its queries gave in all,
    which then decays.
    """

    name: ClassVar[str] = "decayed"
    about: ClassVar[str] = "attention summed, of which a share is forgotten at every step"
    kernel: ClassVar[Kernel | None] = "cumulative"

    decay: float = option(0.99, "what is left of past attention after a step")

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise ScopeError(f"decay is {self.decay}; it is a share, from 0 to 1")

    def worth(self, slots: Slots) -> Tensor:
        return slots.state["total"].mul_(self.decay).add_(slots.current)
