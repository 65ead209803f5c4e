"""Layers of which each of several processes has a part, and computes with what the others have."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional


class SummedLinear(nn.Linear):
    """A rank's columns of a projection: the products of all ranks add up to the whole one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(functional.linear(x, self.weight, self.bias))

    def combine(self, output: Tensor) -> Tensor:
        dist.all_reduce(output)
        return output


class GatheredLinear(nn.Linear):
    """A rank's rows of a projection: the products of all ranks are put side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(functional.linear(x, self.weight, self.bias))

    def combine(self, output: Tensor) -> Tensor:
        parts = [torch.empty_like(output) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, output.contiguous())
        return torch.cat(parts, dim=-1)


def combined(layer: nn.Module, output: Tensor) -> Tensor:
    """What the ranks' parts of a layer's output make together; of a whole layer, its output."""
    if isinstance(layer, (SummedLinear, GatheredLinear)):
        return layer.combine(output)
    return output
