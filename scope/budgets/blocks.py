"""Budgets left by evicting blocks of all layers and heads together (KV-Compress, 2410.00161)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from scope.errors import ScopeError
from scope.methods.budget import Divided, Part
from scope.methods.options import option
from scope.methods.prompt import Prompt

# v of KVC-full: the next tokens look at a token whatever it is worth later.
_LAG = 10


@dataclass(frozen=True)
class SquaredAttention:
    """The metric of KV-Compress, for a budget and a compressor: options that both read.

        KVC-w:     M_j = max over |i - j| <= p // 2 of sum_(last w queries) A_i^2
        KVC-full:  M_j = sum of A_ij^2 over all queries i >= j + v,  v = 10

    The sums also run over the query heads of a group; here it is their mean, which ranks alike.
    """

    window_size: int = option(8, "w, last prompt tokens always kept")
    protected_window: int = option(32, "last prompt tokens that no eviction of blocks reaches")
    kernel_size: int = option(7, "pooling width of the prompt's scores, odd")
    judged_by: Literal["window", "all"] = option(
        "window", "whose squared attention counts: the last w queries' (KVC-w) or all (KVC-full)"
    )

    def __post_init__(self) -> None:
        if not 1 <= self.window_size <= self.protected_window:
            raise ScopeError(
                f"window_size is {self.window_size}; it must be at least 1 and at most "
                f"protected_window {self.protected_window}"
            )
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ScopeError(f"kernel_size is {self.kernel_size}; it must be odd and positive")

    def metric(self, prompt: Prompt) -> Tensor:
        """What each token is worth: ``[H, L]``."""
        if self.judged_by == "all":
            return prompt.received(squared=True, lag=_LAG)
        sums = prompt.received(last=self.window_size, squared=True)
        return functional.max_pool1d(
            sums, self.kernel_size, stride=1, padding=self.kernel_size // 2
        )


@dataclass(frozen=True)
class Blocks(SquaredAttention, Divided):
    """What is left to each head where the least worthy blocks of all layers and heads are evicted.

    A head's L tokens, the least worthy first, lie in blocks of b from the end on, so that the first
    block is the one with empty slots, and those go first. A block is worth what its best token is,
    and of all blocks of N layers and H heads as many stay as C N H slots hold: heads keep whole
    blocks, or all L tokens, for which the empty slots of their first block count too. The last
    ``protected_window`` tokens are worth more than any other.
    """

    name: ClassVar[str] = "blocks"
    about: ClassVar[str] = "more to heads whose blocks are looked at most, on average C"

    block_size: int = option(16, "b, tokens of a head that are evicted together")

    def __post_init__(self) -> None:
        Divided.__post_init__(self)
        super().__post_init__()
        if self.block_size < 1:
            raise ScopeError(f"block_size is {self.block_size}; it must be at least 1")
        least = -(-self.protected_window // self.block_size) * self.block_size
        if least > self.max_capacity_prompt:
            raise ScopeError(
                f"protected_window {self.protected_window} takes {least} slots in blocks of "
                f"{self.block_size}, and max_capacity_prompt is {self.max_capacity_prompt}; raise "
                "it to that, or lower protected_window"
            )

    @property
    def own_share(self) -> Part:
        return "head"

    def observe(self, prompt: Prompt) -> Tensor:
        """What the blocks of each head are worth, ``[H, ceil(L / b)]``, ascending."""
        worth = self.metric(prompt)
        worth[:, -self.protected_window :] = torch.inf
        ascending = worth.sort(dim=-1).values
        return ascending.flip(-1)[:, :: self.block_size].flip(-1)

    def share_out(self, seen: Tensor, length: int) -> NDArray[np.int64]:
        worth = seen.numpy()
        layers, heads, blocks = worth.shape
        if length <= self.max_capacity_prompt:
            return np.full((layers, heads), self.max_capacity_prompt)
        staying = self.max_capacity_prompt * layers * heads // self.block_size
        # A head's blocks are in order, so of equal ones its first leave first too.
        by_worth = worth.ravel().argsort(kind="stable")
        evicted = by_worth[: max(worth.size - staying, 0)] // blocks
        left = blocks - np.bincount(evicted, minlength=layers * heads)
        return np.minimum(left * self.block_size, length).reshape(layers, heads)
