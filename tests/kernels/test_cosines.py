"""Sums of cosines, of which some count as 0: both backends give what plain loops give."""

import math

import pytest
import torch
from torch import Tensor

from scope.kernels.tensors import FREE
from tests.core.tiny import backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter knows no bfloat16.
DTYPES = [torch.float32] if DEVICE == "cpu" else [torch.float32, torch.bfloat16, torch.float16]


def by_loops(keys: list[list[float]], ranks: list[int]) -> list[float]:
    """Of one head."""

    def cosine(i: int, j: int) -> float:
        product = sum(a * b for a, b in zip(keys[i], keys[j], strict=True))
        return product / (math.hypot(*keys[i]) * math.hypot(*keys[j])) if product else 0.0

    held = [i for i, rank in enumerate(ranks) if rank != FREE]
    sums = [0.0] * len(keys)
    for i in held:
        cosines = {j: cosine(i, j) for j in held if j != i}
        newest = max((j for j in cosines if cosines[j] > 0.5), key=lambda j: ranks[j], default=None)
        for j, own in cosines.items():
            sums[j] += 0.0 if j == newest else own
    return sums


def keys_and_ranks(slots: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Keys that many others are similar to, one of 0, in any order, some slots free."""
    random = torch.Generator().manual_seed(slots)
    keys = torch.randn(2, 3, slots, head_dim, generator=random)
    keys += 0.6 * torch.randn(2, 3, 1, head_dim, generator=random)
    keys[0, 0, slots // 2] = 0.0
    ranks = torch.rand(2, 3, slots, generator=random).argsort(dim=-1).int() - slots // 9
    ranks[1, 2] = FREE
    return keys, ranks.clamp(min=FREE)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize(("slots", "head_dim"), [(5, 16), (70, 16), (150, 64), (200, 128)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_as_plain_loops(slots: int, head_dim: int, dtype: torch.dtype, kernels: bool) -> None:
    keys, ranks = keys_and_ranks(slots, head_dim)
    keys = keys.to(dtype)
    ours = backend(kernels).cosine_sums(keys.to(DEVICE), ranks.to(DEVICE), 0.5)
    for row in range(2):
        for head in range(3):
            theirs = by_loops(keys[row, head].tolist(), ranks[row, head].tolist())
            torch.testing.assert_close(ours[row, head].tolist(), theirs, rtol=1e-4, atol=1e-4)
