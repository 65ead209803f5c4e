"""Attention summed with decay: an exponential average over steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope.kernels.tensors import Kernel
from scope.methods.options import option
from scope.methods.prompt import Prompt
from scope.methods.score import AttentionScore, Shape, Slots


@dataclass(frozen=True)
class Decayed(AttentionScore):
    """``s <- decay * s + p``, p being this step's attention to the token.

    InertiaKV, arXiv 2609.03515, which has ``(1 - decay) * p``: the order is the same. A decay of 0
    is ``current``, of 1 ``cumulative``. A prompt's tokens go on from what its queries gave in all,
    which then decays.
    """

    name: ClassVar[str] = "decayed"
    about: ClassVar[str] = "attention summed, of which a share is forgotten at every step"
    kernel: ClassVar[Kernel | None] = "cumulative"
    state: ClassVar[Mapping[str, Shape]] = {"total": ("H", "S")}

    decay: float = option(0.99, "what is left of past attention after a step")

    def worth(self, slots: Slots) -> Tensor:
        return slots.state["total"].mul_(self.decay).add_(slots.current)

    def remember(self, prompt: Prompt) -> Mapping[str, Tensor]:
        return {"total": prompt.received(reduction=self.group_reduction)}
