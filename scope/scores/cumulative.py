"""Attention summed since a token came: H2O's score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope.kernels.tensors import Kernel
from scope.methods.prompt import Prompt
from scope.methods.score import AttentionScore, Shape, Slots


@dataclass(frozen=True)
class Cumulative(AttentionScore):
    """The attention that a token has received from all queries so far.

    H2O, arXiv 2306.14048, section 4. Tokens of a prompt go on from what its own queries gave.
    """

    name: ClassVar[str] = "cumulative"
    about: ClassVar[str] = "attention summed since the token came"
    kernel: ClassVar[Kernel | None] = "cumulative"
    state: ClassVar[Mapping[str, Shape]] = {"total": ("H", "S")}

    def worth(self, slots: Slots) -> Tensor:
        return slots.state["total"].add_(slots.current)

    def remember(self, prompt: Prompt) -> Mapping[str, Tensor]:
        return {"total": prompt.received(reduction=self.group_reduction)}
