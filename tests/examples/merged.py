"""What leaves is added to its nearest key (after CaM and KVMerger): a strategy that rewrites."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scope.decoding.slide import Slide
from scope.methods.api import FREE, Slots, option


@dataclass(frozen=True)
class Merged(Slide):
    """Slide, but the value of a token that leaves is mixed into that of the most similar key."""

    name: ClassVar[str] = "merged"
    about: ClassVar[str] = "slide, merging what leaves"

    weight: float = option(0.5, "of what leaves, in the mixture")

    def rewrite(self, slots: Slots, leaving: Tensor) -> None:
        stays = (slots.positions != FREE) & ~leaving
        # Of the few that leave, one a head at a time: the first.
        gone = leaving.to(torch.int8).argmax(dim=-1, keepdim=True)[..., None]
        gone = gone.expand(-1, -1, -1, slots.keys.shape[-1])
        similar = (slots.keys * slots.keys.gather(2, gone)).sum(dim=-1).float()
        nearest = similar.masked_fill(~stays, -torch.inf).argmax(dim=-1, keepdim=True)[..., None]
        nearest = nearest.expand_as(gone)
        mixed = torch.lerp(
            slots.values.gather(2, nearest), slots.values.gather(2, gone), self.weight
        )
        any_left = leaving.any(dim=-1)[..., None, None]
        slots.values.scatter_(2, nearest, mixed.where(any_left, slots.values.gather(2, nearest)))
