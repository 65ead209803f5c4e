"""Expected attention: what queries to come would attend to, if they were like the last ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from scope.errors import ScopeError
from scope.kernels.tensors import FREE, reduce_group
from scope.methods.options import option
from scope.methods.rope import frequencies, mean_ahead, turned
from scope.methods.score import Shape, Slots
from scope.scores.last_queries import LastQueries


@dataclass(frozen=True)
class Expected(LastQueries):
    """softmax(k mu / sqrt(D) + k' Sigma k / 2D) ||v||, over all that is held.

    Expected attention, arXiv 2510.00636, section 3: mu and Sigma are mean and covariance of the
    last w queries, before RoPE, each then turned by the mean RoPE of the next n positions. Sigma
    is never made: k' Sigma k is the mean square of (q - mu) k.
    """

    name: ClassVar[str] = "expected"
    about: ClassVar[str] = "the attention of queries to come, times the norm of the value"
    state: ClassVar[Mapping[str, Shape]] = {**LastQueries.state, "frequencies": ("D/2",)}

    last_queries: int = option(64, "w, last queries of the generation that judge what is held")
    foreseen: int = option(512, "n, next positions that the score `expected` looks ahead")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.foreseen < 1:
            raise ScopeError(f"foreseen is {self.foreseen}; it must be at least 1")

    def initial(self, config: PreTrainedConfig, layer: int) -> Mapping[str, Tensor]:
        return {"frequencies": frequencies(config, layer)}

    def worth(self, slots: Slots) -> Tensor:
        sums, squares = slots.backend.product_sums(self._queries_to_come(slots), slots.keys)
        count = self.came(slots).sum(dim=1).clamp(min=1)[:, None, None]
        mean = sums / count
        variance = (squares / count - mean.square()).clamp(min=0)
        logits = mean * slots.scaling + variance * slots.scaling**2 / 2
        batch, heads, width = slots.ranks.shape
        logits = logits.view(batch, heads, -1, width)
        held = (slots.ranks != FREE)[:, :, None]
        expected = logits.masked_fill(~held, -torch.inf).softmax(dim=-1)
        # Not of a copy in 32 bits, which would be as large as keys and values together.
        wide = torch.promote_types(slots.values.dtype, torch.float32)
        norm = torch.linalg.vector_norm(slots.values, dim=-1, dtype=wide)
        return reduce_group(expected, self.group_reduction) * norm

    def _queries_to_come(self, slots: Slots) -> Tensor:
        """The ring, as if its queries stood at the mean of the next n positions."""
        paces = slots.state["frequencies"][:, None]
        steps = torch.arange(1, self.foreseen + 1, device=paces.device)
        cos, sin = mean_ahead(paces, steps)
        # Both turns at once: the ring is the largest of what is read here but for the keys.
        until_now = self.ages(slots)[..., None] * paces
        now_cos, now_sin = until_now.cos(), until_now.sin()
        cos, sin = now_cos * cos - now_sin * sin, now_sin * cos + now_cos * sin
        return turned(slots.state["queries"], cos[:, None], sin[:, None])
