"""What a few queries make of all keys: both backends give what each query gives alone."""

import pytest
import torch
from torch import Tensor

from scope.kernels.tensors import FREE
from tests.core.tiny import backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALING = 1.3
BATCH, HEADS = 2, 2
# Query heads of a group, queries of each, slots, head size.
SHAPES = [(1, 1, 20, 16), (3, 5, 70, 16), (4, 20, 50, 16), (2, 70, 40, 64), (4, 32, 200, 128)]
# The interpreter knows no bfloat16.
DTYPES = [torch.float32] if DEVICE == "cpu" else [torch.float32, torch.bfloat16, torch.float16]
shapes = pytest.mark.parametrize(("group", "count", "slots", "head_dim"), SHAPES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
kernels = pytest.mark.parametrize("kernels", [False, True])


def states(
    group: int, count: int, slots: int, head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Queries and keys, whose logits are of order 1, in numbers that a dtype has."""
    random = torch.Generator().manual_seed(slots)
    queries = torch.randn(BATCH, HEADS * group, count, head_dim, generator=random)
    keys = torch.randn(BATCH, HEADS, slots, head_dim, generator=random)
    return (queries * head_dim**-0.5).to(dtype).float(), keys.to(dtype).float()


@kernels
@shapes
@pytest.mark.parametrize("window", [None, 14])
@pytest.mark.parametrize("largest", [False, True])
@dtypes
def test_attention(
    group: int, count: int, slots: int, head_dim: int, window: int | None, largest: bool,
    dtype: torch.dtype, kernels: bool,
) -> None:  # fmt: skip
    queries, keys = states(group, count, slots, head_dim, dtype)
    random = torch.Generator().manual_seed(count)
    ranks = torch.rand(BATCH, HEADS, slots, generator=random).argsort(dim=-1).int() - slots // 9
    ranks = ranks.clamp(min=FREE)
    ranks[0, 1, ::3] = FREE
    positions = ranks * 2
    last = torch.randint(FREE, int(ranks.max()) + 1, (BATCH, count), generator=random).int()
    last[1, 0] = FREE
    expected = torch.zeros(BATCH, HEADS * group, slots)
    for row in range(BATCH):
        for head in range(HEADS * group):
            for number in range(count):
                own, newest = (
                    (part[row, head // group] for part in (keys, ranks)),
                    last[row, number],
                )
                own_keys, own_ranks = own
                seen = (own_ranks != FREE) & (own_ranks <= newest)
                if window is not None:
                    seen &= own_ranks * 2 > 2 * newest - window
                logits = own_keys @ queries[row, head, number] * SCALING
                shares = torch.zeros(slots)
                shares[seen] = logits[seen].softmax(dim=0)
                place = expected[row, head]
                torch.maximum(place, shares, out=place) if largest else place.add_(shares)
    after = None if window is None else (2 * last - window).to(DEVICE)
    ours = backend(kernels).attention_sums(
        queries.to(DEVICE),
        keys.to(DEVICE, dtype),
        ranks.to(DEVICE),
        last.to(DEVICE),
        SCALING,
        None if window is None else positions.to(DEVICE),
        after,
        largest,
    )
    # Plain torch rounds logits; on a GPU in another order than on a CPU.
    close = 1e-4 if kernels or dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours.cpu(), expected, rtol=close, atol=1e-5)


@kernels
@shapes
@dtypes
def test_products(
    group: int, count: int, slots: int, head_dim: int, dtype: torch.dtype, kernels: bool
) -> None:
    queries, keys = states(group, count, slots, head_dim, dtype)
    products = queries @ keys.repeat_interleave(group, dim=1).transpose(2, 3)
    expected = products.sum(dim=2), products.square().sum(dim=2)
    ours = backend(kernels).product_sums(queries.to(DEVICE), keys.to(DEVICE, dtype))
    close = 1e-4 if kernels or dtype == torch.float32 else 1e-2
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=close, atol=10 * close)
