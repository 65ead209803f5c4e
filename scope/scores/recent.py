"""A control: the newer stays."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope.kernels.tensors import Kernel
from scope.methods.score import Score, Slots


@dataclass(frozen=True)
class Recent(Score):
    """The order in which tokens came: a sliding window."""

    name: ClassVar[str] = "recent"
    about: ClassVar[str] = "control: the newer stays"
    kernel: ClassVar[Kernel | None] = "recent"

    def worth(self, slots: Slots) -> Tensor:
        return slots.ranks.float()
