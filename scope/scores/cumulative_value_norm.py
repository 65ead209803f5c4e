"""Attention summed, times the size of the value: VATP's score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope.kernels.tensors import Kernel
from scope.methods.prompt import Prompt
from scope.methods.score import Shape, Slots
from scope.scores.value_norm import ValueNorm


@dataclass(frozen=True)
class CumulativeValueNorm(ValueNorm):
    """``(sum of p) * |v|_1``: how much a token has given so far.

    VATP, arXiv 2406.12335, section 4, on H2O's scores. The products are summed, which is the same,
    so two floats are remembered of a token: its norm and its sum.
    """

    name: ClassVar[str] = "cumulative_value_norm"
    about: ClassVar[str] = "attention summed since the token came, times the 1-norm of the value"
    kernel: ClassVar[Kernel | None] = "cumulative"
    state: ClassVar[Mapping[str, Shape]] = {**ValueNorm.state, "total": ("H", "S")}

    def worth(self, slots: Slots) -> Tensor:
        return slots.state["total"].add_(super().worth(slots))

    def remember(self, prompt: Prompt) -> Mapping[str, Tensor]:
        norm = super().remember(prompt)["norm"]
        return {"norm": norm, "total": norm * prompt.received(reduction=self.group_reduction)}
