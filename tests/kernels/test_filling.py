"""A row starts over with a prompt's tokens, whatever was in it, and the other rows stay."""

import pytest
import torch

from scope.kernels.tensors import FREE, SlotTensors
from tests.core.tiny import backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, HEADS, SLOTS, HEAD_DIM = 3, 2, 70, 16


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def full_slots() -> SlotTensors:
    """Of other tokens, and what an overflow has left."""
    keys, values = random(2, ROWS, HEADS, SLOTS, HEAD_DIM, seed=0)
    values[1] = torch.inf
    ranks = torch.arange(SLOTS, dtype=torch.int32, device=DEVICE).repeat(ROWS, HEADS, 1)
    vacant = torch.full((ROWS, HEADS), 7, dtype=torch.int32, device=DEVICE)
    return SlotTensors(keys, values, ranks + 100, ranks, vacant)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize(("kept", "empty"), [(1, 0), (33, 4), (70, 0)])
def test_fill(kept: int, empty: int, kernels: bool) -> None:
    slots, before = full_slots(), full_slots()
    # As a projection leaves them: the heads of one token side by side.
    states = random(kept, 3 * HEADS, HEAD_DIM, seed=kept)
    _, keys, values = states.transpose(0, 1).split(HEADS)
    positions = torch.arange(kept, device=DEVICE).mul(3).repeat(HEADS, 1)
    positions[1, kept - empty :] = FREE
    backend(kernels).fill(slots, 1, keys, values, positions)
    assert torch.equal(slots.keys[1, :, :kept], keys)
    assert torch.equal(slots.values[1, :, :kept], values)
    assert not slots.values[1, :, kept:].any()
    assert slots.positions[1, :, :kept].tolist() == positions.tolist()
    numbers = list(range(kept))
    assert slots.ranks[1, 0, :kept].tolist() == numbers
    assert slots.ranks[1, 1, :kept].tolist() == numbers[: kept - empty] + [FREE] * empty
    for part in (slots.positions, slots.ranks):
        assert (part[1, :, kept:] == FREE).all()
    assert slots.vacant.tolist() == [[7, 7], [kept, kept], [7, 7]]
    for name in ("keys", "values", "positions", "ranks"):
        now, then = getattr(slots, name), getattr(before, name)
        assert torch.equal(now[::2], then[::2])
