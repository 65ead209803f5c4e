"""This step's attention times the size of the value: LongFlow's score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope.kernels.tensors import Kernel
from scope.methods.prompt import Prompt
from scope.methods.score import AttentionScore, Shape, Slots


@dataclass(frozen=True)
class ValueNorm(AttentionScore):
    """``p * |v|_1``: how much a token gives to the output of this step.

    LongFlow, arXiv 2603.11504, but per head, and with p normalised. The norm is taken once, when
    the token comes.
    """

    name: ClassVar[str] = "value_norm"
    about: ClassVar[str] = "this step's attention times the 1-norm of the value"
    kernel: ClassVar[Kernel | None] = "current"
    state: ClassVar[Mapping[str, Shape]] = {"norm": ("H", "S")}

    def worth(self, slots: Slots) -> Tensor:
        norm, new = slots.state["norm"], slots.new_values.float().abs().sum(dim=-1, keepdim=True)
        norm.copy_(new.where(slots.is_new, norm))
        return norm * slots.current

    def remember(self, prompt: Prompt) -> Mapping[str, Tensor]:
        return {"norm": prompt.values.float().abs().sum(dim=-1)}
