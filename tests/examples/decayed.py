"""Attention that is forgotten exponentially: a decoding score with one constant."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope.methods.api import AttentionScore, Shape, Slots, option


@dataclass(frozen=True)
class Decayed(AttentionScore):
    """The attention received so far, of which a share is forgotten at every step."""

    name: ClassVar[str] = "decayed"
    about: ClassVar[str] = "attention summed with decay"
    state: ClassVar[Mapping[str, Shape]] = {"total": ("H", "S")}

    decay: float = option(0.9, "what is left of past attention after a step")

    def worth(self, slots: Slots) -> Tensor:
        return slots.state["total"].mul_(self.decay).add_(slots.current)
