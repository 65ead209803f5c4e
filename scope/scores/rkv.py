"""R-KV: attention against redundancy."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scope.errors import ScopeError
from scope.kernels.tensors import FREE
from scope.methods.options import option
from scope.methods.score import Slots
from scope.scores.last_queries import LastQueries, in_order
from scope.scores.snapkv_decode import max_of_seven

_SIMILAR = 0.5


@dataclass(frozen=True)
class RKV(LastQueries):
    """lambda I - (1 - lambda) R: what is attended to, less what other keys say too.

    R-KV, arXiv 2505.24133, section 3. I is the mean attention of the last w queries to what is
    older than they are, and the largest of seven neighbours; the last w tokens stay. R is the
    softmax over all that is held of a key's mean cosine with the others. Of the keys that are
    similar to one, by more than 0.5, the newest is not redundant for it: that cosine counts as 0.
    """

    name: ClassVar[str] = "rkv"
    about: ClassVar[str] = "the last w queries' attention less the similarity to other keys"

    attention_weight: float = option(0.1, "lambda, weight of attention; the rest is redundancy's")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.attention_weight <= 1:
            raise ScopeError(f"attention_weight is {self.attention_weight}; it must be from 0 to 1")

    def worth(self, slots: Slots) -> Tensor:
        older = self.older(slots)
        attention = self.received(slots, among=older) / self.last_queries
        importance = in_order(slots, attention, max_of_seven)
        mixed = torch.lerp(-redundancy(slots), importance, self.attention_weight)
        return self.with_last(slots, mixed)


def redundancy(slots: Slots) -> Tensor:
    """R of every slot, ``[B, H, S]`` float32; its memory is linear in S."""
    held = slots.ranks != FREE
    sums = slots.backend.cosine_sums(slots.keys, slots.ranks, _SIMILAR)
    mean = sums / held.sum(dim=-1, keepdim=True)
    return mean.masked_fill(~held, -torch.inf).softmax(dim=-1)
