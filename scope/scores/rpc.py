"""RPC's score: what the newest part of a chain of thought attends to, one set for all heads."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from scope.kernels.tensors import GroupReduction
from scope.methods.options import option
from scope.methods.score import Slots
from scope.scores.last_queries import LastQueries, in_order


@dataclass(frozen=True)
class RPCScore(LastQueries):
    """The attention of the last w queries to the generation before them, of all heads of a layer.

    Reasoning path compression, arXiv 2505.13866, section 4: softmax over what is held of the
    generation but for the last w tokens, summed over the queries, averaged over the heads and over
    seven neighbours. The last w tokens stay. Heads share by the order in which their tokens came,
    so they must hold the same ones: as in a pool of its own, or beside the whole prompt.
    """

    name: ClassVar[str] = "rpc"
    about: ClassVar[str] = "the last w queries' attention to the generation, one for all heads"

    of_all_heads: ClassVar[bool] = True

    last_queries: int = option(32, "w, last queries of the generation that judge what is held")
    group_reduction: GroupReduction = "mean"  # as over all heads: nothing to choose

    def worth(self, slots: Slots) -> Tensor:
        older = self.older(slots)
        generated = slots.ranks >= slots.protected[:, None, None]
        attention = self.received(slots, among=older & generated)
        return self.with_last(slots, in_order(slots, attention, _of_all_heads))


def _of_all_heads(values: Tensor) -> Tensor:
    mean = values.mean(dim=1, keepdim=True).expand_as(values)
    return functional.avg_pool1d(mean, kernel_size=7, stride=1, padding=3)
