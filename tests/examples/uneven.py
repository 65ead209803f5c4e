"""More for heads whose attention is spread wide (after ZigZagKV): a budget that looks first."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scope.methods.api import Divided, Prompt, option


@dataclass(frozen=True)
class Uneven(Divided):
    """Every head has half of C; the other halves go to heads by the entropy of their attention."""

    name: ClassVar[str] = "uneven"
    about: ClassVar[str] = "by how widely a head attends, on average C"

    per_head: bool = option(True, "whether heads of a layer may differ")

    def observe(self, prompt: Prompt) -> Tensor:
        received = prompt.received(last=8)
        shares = received / received.sum(dim=-1, keepdim=True)
        spread = -(shares * shares.clamp(min=1e-9).log()).sum(dim=-1)
        return spread if self.per_head else spread.mean(dim=-1)

    def share_out(self, seen: Tensor, length: int) -> NDArray[np.int64]:
        spread = seen.double().numpy()
        least = self.max_capacity_prompt // 2
        spare = spread.size * (self.max_capacity_prompt - least)
        return least + np.floor(spare * spread / spread.sum()).astype(np.int64)
