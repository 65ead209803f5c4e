"""A control: chance."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scope.kernels.tensors import Kernel, mixed
from scope.methods.options import option
from scope.methods.score import Score, Slots


@dataclass(frozen=True)
class Random(Score):
    """A fixed number that is drawn for every token when it comes: a uniform sample stays.

    It depends on the seed, the row's prompt, the layer, the head and the token's rank, so a row
    draws the same in any batch, and every prompt and every seed draws its own.
    """

    name: ClassVar[str] = "random"
    about: ClassVar[str] = "control: a uniform sample stays, drawn anew for every seed and prompt"
    kernel: ClassVar[Kernel | None] = "random"

    seed: int = option(42, "seed of the control `random`")

    def worth(self, slots: Slots) -> Tensor:
        ranks = slots.ranks
        heads = torch.arange(ranks.shape[1], device=ranks.device)[:, None]
        chance = slots.draw[:, None, None] + 1_000_003 * heads + 1_000_000_007 * slots.layer
        # 24 bits, which a float holds exactly.
        return (mixed(mixed(ranks.long()) + chance) >> 8).float()
