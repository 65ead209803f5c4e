"""The largest attention so far, fading: G-KV's global score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scope.kernels.tensors import Kernel
from scope.methods.prompt import Prompt
from scope.methods.score import Slots
from scope.scores.decayed import Decayed


@dataclass(frozen=True)
class MaxDecay(Decayed):
    """``s <- max(decay * s, p)``, p being this step's attention to the token.

    G-KV, arXiv 2512.00504. Its p is a mean over the last 16 queries, scaled to a largest of 1, and
    its decay of 0.8 comes every 128 steps: 0.9983 a step. A prompt's tokens go on from what its
    last query gave.
    """

    name: ClassVar[str] = "max_decay"
    about: ClassVar[str] = "the largest attention so far, of which a share fades at every step"
    kernel: ClassVar[Kernel | None] = "peak"

    def worth(self, slots: Slots) -> Tensor:
        total = slots.state["total"].mul_(self.decay)
        return torch.maximum(total, slots.current, out=total)

    def remember(self, prompt: Prompt) -> Mapping[str, Tensor]:
        return {"total": prompt.received(last=1, reduction=self.group_reduction)}
