"""What is read next: the same lists from both backends as from sorting in plain Python."""

import math

import pytest
import torch

from scope.kernels.tensors import FREE, Listed
from tests.core.tiny import backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, HEADS = 4, 2


def best(worth: list[float], size: int) -> list[int]:
    """Slots of the largest worth, the least first; of equals the later one first."""
    there = [slot for slot, one in enumerate(worth) if one > -math.inf]
    chosen = sorted(there, key=lambda slot: (-worth[slot], slot))[:size]
    return [FREE] * (size - len(chosen)) + chosen[::-1]


@pytest.mark.parametrize(
    ("slots", "size", "values"),
    [
        (60, 7, 4),
        (60, 59, 1000),
        (9, 20, 3),
        (50, 1, 5),
        (5000, 40, 30),
        (200, 64, 1),
    ],
)
@pytest.mark.parametrize("kernels", [False, True])
def test_best_of_many_equals(slots: int, size: int, values: int, kernels: bool) -> None:
    """Few values, some negative, some missing; one row is short, one empty, one not full."""
    random = torch.Generator().manual_seed(slots)
    worth = torch.randint(-1, values, (BATCH, HEADS, slots), generator=random) / 8
    worth[:, 1, ::3] = -torch.inf
    newest = torch.tensor([slots - 1, slots // 2, -1, slots - 1], dtype=torch.int32)
    lists = torch.arange(BATCH * HEADS * size, dtype=torch.int32).view(BATCH, HEADS, size)
    since, full = torch.arange(BATCH).int(), torch.tensor([1, 1, 1, 0]).int()
    expected = [
        [best(head[: last + 1], size) for head in row]
        for row, last in zip(worth.tolist(), newest.tolist(), strict=True)
    ]
    expected[3] = lists[3].tolist()
    listed = Listed(lists.to(DEVICE), since.to(DEVICE))
    backend(kernels).choose(listed, *(x.to(DEVICE) for x in (full, worth, newest)))
    assert listed.slots.tolist() == expected
    assert listed.since.tolist() == [*newest[:3].tolist(), 3]
