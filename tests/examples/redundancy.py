"""Attention against redundancy, as in R-KV (arXiv 2505.24133): a decoding score that sees keys."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from scope.methods.api import FREE, AttentionScore, Slots, option


@dataclass(frozen=True)
class Redundancy(AttentionScore):
    """A share of the attention a token receives, less how similar its key is to all that is held.

    The mean of a key's cosines with all keys is its product with the mean of the unit keys, so no
    S x S matrix is made.
    """

    name: ClassVar[str] = "redundancy"
    about: ClassVar[str] = "attention less the similarity to other keys"

    balance: float = option(0.1, "weight of attention; the rest is that of redundancy")

    def worth(self, slots: Slots) -> Tensor:
        held = (slots.positions != FREE)[..., None]
        keys = normalize(slots.keys.float(), dim=-1).where(held, 0.0)
        mean = keys.sum(dim=2, keepdim=True) / held.sum(dim=2, keepdim=True)
        redundancy = (keys * mean).sum(dim=-1)
        return self.balance * slots.current - (1 - self.balance) * redundancy
