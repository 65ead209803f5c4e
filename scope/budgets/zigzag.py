"""Budgets that follow the measured uncertainty of attention (ZigZagKV, arXiv 2412.09036)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scope.errors import ScopeError
from scope.methods.budget import Divided, Part
from scope.methods.options import option
from scope.methods.prompt import Prompt


@dataclass(frozen=True)
class ZigZag(Divided):
    """More tokens for layers whose attention is spread wide, never less than a minimum.

    For head h of layer l, a ``[L]`` is the attention that tokens receive from the last w queries.
    MBA_lh is how few tokens receive a share tau of it, LMBA_l its mean over heads. Of N layers,
    layer l keeps B_bound + (C - B_bound) N LMBA_l / sum_j LMBA_j tokens, in whole numbers by the
    largest remainders. What would be above L goes to the other layers in the same proportion, so
    budgets sum to N C for every prompt longer than C. Heads are cached heads, whose attention is
    the mean over their query heads.

    The authors' values of tau, B_bound and w are not known to us; the defaults of the first two are
    a third party's.
    """

    name: ClassVar[str] = "zigzag"
    about: ClassVar[str] = "more where attention is spread wide, on average C"

    window_size: int = option(8, "w, last prompt tokens always kept")
    attention_mass: float = option(0.9, "tau, share of attention that the fewest tokens hold")
    least_share: float = option(0.2, "B_bound, what every layer has at least, as a part of C")
    per_head: bool = option(False, "whether heads have budgets of their own, by their MBA")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.window_size < self.max_capacity_prompt:
            raise ScopeError(
                f"window_size {self.window_size} leaves no room in max_capacity_prompt "
                f"{self.max_capacity_prompt}; it must be at least 1 and smaller"
            )
        if not 0 < self.attention_mass <= 1:
            raise ScopeError(
                f"attention_mass is {self.attention_mass}; it must be above 0 and at most 1"
            )
        if not 0 <= self.least_share <= 1:
            raise ScopeError(f"least_share is {self.least_share}; it must be from 0 to 1")

    @property
    def least(self) -> int:
        """B_bound; the window always has room."""
        return max(self.window_size, int(self.least_share * self.max_capacity_prompt))

    @property
    def own_share(self) -> Part:
        return "head" if self.per_head else "layer"

    def observe(self, prompt: Prompt) -> Tensor:
        received = prompt.received(last=self.window_size)
        largest_first = received.sort(dim=-1, descending=True).values
        so_far = largest_first.cumsum(dim=-1)
        missing = so_far < self.attention_mass * so_far[:, -1:]
        return missing.sum(dim=-1) + 1

    def share_out(self, seen: Tensor, length: int) -> NDArray[np.int64]:
        fewest = seen.numpy()
        weights = fewest if self.per_head else fewest.sum(axis=1)
        total = weights.size * self.max_capacity_prompt
        if length <= self.max_capacity_prompt:
            return np.full(weights.shape, self.max_capacity_prompt)
        return divided(total, weights.ravel(), self.least, length).reshape(weights.shape)


def divided(total: int, weights: NDArray[np.int64], least: int, most: int) -> NDArray[np.int64]:
    """Whole numbers from ``least`` to ``most`` with this sum; beyond ``least`` as the weights are.

    Args:
        total: from n times ``least`` to n times ``most``.
        weights: ``[n]``, 1 at least.
        least, most: what each may have.
    """
    shares, open_ = np.full(len(weights), most), np.ones(len(weights), bool)
    while open_.any():
        spare = total - shares[~open_].sum() - least * open_.sum()
        own, whole = spare * weights[open_], weights[open_].sum()
        if (too_much := own > (most - least) * whole).any():
            open_[np.flatnonzero(open_)[too_much]] = False
            continue
        parts = own // whole
        by_remainder = np.argsort(-(own % whole), kind="stable")
        parts[by_remainder[: spare - parts.sum()]] += 1
        shares[open_] = least + parts
        break
    return shares
