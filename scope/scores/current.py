"""This step's attention: what the published SCOPE code ranks generated tokens by."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope.kernels.tensors import Kernel
from scope.methods.score import AttentionScore, Slots


@dataclass(frozen=True)
class Current(AttentionScore):
    """The attention that a token receives from the current query (arXiv 2412.13649, section 3)."""

    name: ClassVar[str] = "current"
    about: ClassVar[str] = "this step's attention"
    kernel: ClassVar[Kernel | None] = "current"

    def worth(self, slots: Slots) -> Tensor:
        return slots.current
