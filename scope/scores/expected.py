"""Expected attention: what queries to come would attend to, if they were like the last ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
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
        batch, heads, _, head_dim = slots.keys.shape
        queries = self._queries_to_come(slots).view(batch, heads, -1, self.last_queries, head_dim)
        came = queries.any(dim=-1, keepdim=True)
        count = came.sum(dim=3).clamp(min=1)
        mean = queries.sum(dim=3) / count
        deviations = (queries - mean[:, :, :, None]) * came
        keys = slots.keys.transpose(2, 3).float()
        # One after the other: all at once would take w times S.
        squares = ((deviation @ keys).square() for deviation in deviations.unbind(dim=3))
        variance = reduce(torch.add, squares) / count
        logits = mean @ keys * slots.scaling + variance * slots.scaling**2 / 2
        held = (slots.ranks != FREE)[:, :, None]
        expected = logits.masked_fill(~held, -torch.inf).softmax(dim=-1)
        return reduce_group(expected, self.group_reduction) * slots.values.float().norm(dim=-1)

    def _queries_to_come(self, slots: Slots) -> Tensor:
        """The ring, as if its queries stood at the mean of the next n positions."""
        paces = slots.state["frequencies"][:, None, None]
        since = self.ages(slots)[:, None, :, None] * paces
        now = turned(slots.state["queries"], since.cos(), since.sin())
        steps = torch.arange(1, self.foreseen + 1, device=paces.device)
        return turned(now, *mean_ahead(paces, steps))
