"""What scores have in common that look through the last queries, now and then."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scope.errors import ScopeError
from scope.kernels.tensors import FREE, reduce_group
from scope.methods.options import option
from scope.methods.score import AttentionScore, Shape, Slots


@dataclass(frozen=True)
class LastQueries(AttentionScore):
    """Base of scores that need the last w queries."""

    seldom: ClassVar[bool] = True
    state: ClassVar[Mapping[str, Shape]] = {"queries": ("H_q", "last_queries", "D")}

    last_queries: int = option(8, "w, last queries of the generation that judge what is held")

    def __post_init__(self) -> None:
        if self.last_queries < 1:
            raise ScopeError(f"last_queries is {self.last_queries}; it must be at least 1")

    def ages(self, slots: Slots) -> Tensor:
        """``[B, w]`` steps since each query of the ring came; 0 is the newest."""
        places = torch.arange(self.last_queries, device=slots.newest.device)
        return (slots.newest[:, None] - places) % self.last_queries

    def came(self, slots: Slots) -> Tensor:
        """``[B, w]`` bool, which places of the ring a query has come to."""
        return slots.state["queries"].any(dim=3).any(dim=1)

    def older(self, slots: Slots) -> Tensor:
        """``[B, H, S]`` bool, tokens that came before all of the last w."""
        before = (slots.newest - self.last_queries)[:, None, None]
        return (slots.ranks != FREE) & (slots.ranks <= before)

    def with_last(self, slots: Slots, worth: Tensor) -> Tensor:
        """Worth of older tokens, none above w, and more for the last w, of which the newest stay.

        Whole numbers of little more than w, which a mean over heads leaves as they are.
        """
        age = slots.newest[:, None, None] - slots.ranks
        return worth.where(self.older(slots), 2.0 * self.last_queries + 1 - age)

    def received(self, slots: Slots, among: Tensor | None = None, largest: bool = False) -> Tensor:
        """Attention that every slot receives from the last w queries: ``[B, H, S]`` float32.

        Args:
            slots: one layer.
            among: ``[B, H, S]`` bool, the slots that share a query's attention; None for all. Of
                those it sees what it saw when it came; a query that never came gives nothing.
            largest: whether the largest that a query head gives is wanted instead of the sum.
        """
        queries, ages, window = slots.state["queries"], self.ages(slots), slots.sliding_window
        received = slots.backend.attention_sums(
            queries,
            slots.keys,
            slots.ranks if among is None else slots.ranks.where(among, FREE),
            (slots.newest[:, None] - ages).masked_fill(~self.came(slots), FREE),
            slots.scaling,
            None if window is None else slots.positions,
            None if window is None else slots.position[:, None] - ages - window,
            largest,
        )
        batch, heads, width = slots.ranks.shape
        return reduce_group(received.view(batch, heads, -1, width), self.group_reduction)


def in_order(slots: Slots, values: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change ``[B, H, S]`` by what works on neighbours: in the order in which tokens came.

    Free slots come before all of them.
    """
    order = slots.ranks.argsort(dim=-1, stable=True)
    changed = change(values.gather(-1, order))
    return torch.empty_like(changed).scatter_(-1, order, changed)
