"""Values of wide range stay, and of the others a sample weighted by attention: VaSE's score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scope.errors import ScopeError
from scope.kernels.tensors import Kernel
from scope.methods.options import option
from scope.methods.prompt import Prompt
from scope.methods.score import AttentionScore, Shape, Slots


@dataclass(frozen=True)
class ValueRange(AttentionScore):
    """Of those that may leave the share ``large`` with the largest max(v) - min(v) stay.

    VaSE, arXiv 2606.03928. The others are sampled without replacement with their attention p as
    weight: the largest p / -log(u) stay, with u uniform, which is to add Gumbel noise to log p.
    Here p is attention summed with decay; the paper's is a mean over its last queries, pooled over
    neighbours, and its selections come every 64 steps. u is drawn once for every token, so that
    whoever is held goes on being held while attention does not change. Ties with the least of the
    large are large too; should only large ones be left, the lesser range leaves. Two floats are
    remembered of a token.
    """

    name: ClassVar[str] = "value_range"
    about: ClassVar[str] = (
        "the widest values stay, and of the others a sample weighted by attention"
    )
    kernel: ClassVar[Kernel | None] = "value range"
    state: ClassVar[Mapping[str, Shape]] = {"range": ("H", "S"), "total": ("H", "S")}

    decay: float = option(0.99, "what is left of past attention after a step")
    large: float = option(0.25, "share of the tokens that may leave which stay for their range")
    seed: int = option(42, "seed of scores that draw")

    def __post_init__(self) -> None:
        for name in ("decay", "large"):
            if not 0 <= getattr(self, name) <= 1:
                raise ScopeError(f"{name} is {getattr(self, name)}; it is a share, from 0 to 1")

    def worth(self, slots: Slots) -> Tensor:
        ranges, may_go = slots.state["range"], slots.may_go
        ranges.copy_(_range(slots.new_values)[..., None].where(slots.is_new, ranges))
        total = slots.state["total"].mul_(self.decay).add_(slots.current)
        uniform = (slots.drawn() + 0.5) * 2.0**-24
        sampled = total / -uniform.log()
        wanted = (self.large * may_go.sum(dim=-1, keepdim=True).float()).long()
        largest = ranges.masked_fill(~may_go, -1.0).sort(dim=-1, descending=True).values
        least = largest.gather(-1, (wanted - 1).clamp(min=0)).masked_fill(wanted == 0, torch.inf)
        return (ranges * 2.0**100).where(ranges >= least, sampled)

    def remember(self, prompt: Prompt) -> Mapping[str, Tensor]:
        received = prompt.received(reduction=self.group_reduction)
        return {"range": _range(prompt.values), "total": received}


def _range(values: Tensor) -> Tensor:
    """``[..., D]`` to ``[...]`` float32."""
    return values.amax(dim=-1).float() - values.amin(dim=-1).float()
