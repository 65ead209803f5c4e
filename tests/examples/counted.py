"""How often a token was attended to: a decoding score with one constant."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope.methods.api import AttentionScore, Shape, Slots, option


@dataclass(frozen=True)
class Counted(AttentionScore):
    """How often the token has received more than a share of the attention."""

    name: ClassVar[str] = "counted"
    about: ClassVar[str] = "how often the token was attended to"
    state: ClassVar[Mapping[str, Shape]] = {"count": ("H", "S")}

    share: float = option(0.01, "attention above which a token counts as attended to")

    def worth(self, slots: Slots) -> Tensor:
        return slots.state["count"].add_(slots.current > self.share)
