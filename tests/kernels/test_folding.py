"""LoCoCo's fold: both backends give what lists and loops over its equations give."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from baselines.lococo_heads import Heads
from scope.kernels.tensors import FREE
from tests.core.merging_reference import fold_overflow
from tests.core.tiny import backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter knows no bfloat16.
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
BATCH, HEADS, LAYER, RECENT = 3, 2, 1, 3
kernels = pytest.mark.parametrize("kernels", [False, True])


@dataclass
class Entry:
    slot: int
    position: int
    received: float
    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class Layer:
    """What a fold is given of a layer; the second row loses nothing."""

    keys: Tensor
    values: Tensor
    ranks: Tensor
    worth: Tensor
    leaving: Tensor
    last: Tensor

    def entries(self, row: int, head: int) -> list[Entry]:
        """What may be folded of a head; what leaves is lighter than all others."""
        received = self.worth.masked_fill(self.leaving, -1.0)
        own = (part[row, head] for part in (self.ranks, received, self.keys, self.values))
        found = [
            Entry(slot, int(rank), float(received), key, value)
            for slot, (rank, received, key, value) in enumerate(zip(*own, strict=True))
        ]
        return [entry for entry in found if 0 <= entry.position <= self.last[row]]


def layer(slots: int, head_dim: int, period: int, dtype: torch.dtype) -> Layer:
    """Slots in any order, some free, many of equal worth; the lightest leave, or in one row any."""
    random = torch.Generator().manual_seed(slots)
    shape = BATCH, HEADS, slots
    keys, values = (
        torch.randn(*shape, head_dim, generator=random).to(dtype).float() for _ in range(2)
    )
    ranks = torch.rand(shape, generator=random).argsort(dim=-1).int() - slots // 9
    ranks = ranks.clamp(min=FREE)
    worth = torch.randint(5, shape, generator=random) / 4
    last = ranks.amax(dim=(1, 2)) - RECENT
    made = Layer(keys, values, ranks, worth, torch.zeros(shape, dtype=torch.bool), last)
    for head in range(HEADS):
        lightest = sorted(made.entries(0, head), key=lambda e: (e.received, -e.position))
        made.leaving[0, head, [entry.slot for entry in lightest[:period]]] = True
        made.leaving[2, head, [entry.slot for entry in made.entries(2, head)[:period]]] = True
    return made


def heads_of(slots: int, head_dim: int, taps: int) -> Heads:
    """Random heads in numbers that their file has, and answers of order 1."""
    heads = Heads.random(LAYER + 1, slots, head_dim, taps, seed=slots)
    heads.weight.mul_((2 * head_dim * taps) ** -0.5)
    heads.bias.normal_(generator=torch.Generator().manual_seed(slots))
    return Heads(heads.weight.half(), heads.bias.half(), heads.gate.half())


def unwritten(*size: Any, **more: Any) -> Tensor:
    """Memory of which no number may be read before it is written."""
    made = torch.zeros(*size, **more)
    return made.fill_(torch.nan if made.is_floating_point() else 2**30)


def folded(
    given: Layer, heads: Heads, period: int, dtype: torch.dtype, kernels: bool
) -> tuple[Tensor, Tensor]:
    """Keys and values after a fold; they lie in a larger tensor."""
    slots = given.ranks.shape[-1]
    keys, values = (
        torch.nn.functional.pad(part, (0, 0, 0, 5), value=7.0).to(DEVICE, dtype)
        for part in (given.keys, given.values)
    )
    with mock.patch.object(torch, "empty", unwritten):
        backend(kernels).fold(
            keys[:, :, :slots],
            values[:, :, :slots],
            *(part.to(DEVICE) for part in (given.ranks, given.worth, given.leaving, given.last)),
            period + heads.slots,
            heads.on(torch.device(DEVICE)).of(LAYER),
        )
    assert (keys[:, :, slots:] == 7).all()
    assert (values[:, :, slots:] == 7).all()
    return keys[:, :, :slots].float().cpu(), values[:, :, :slots].float().cpu()


@kernels
@pytest.mark.parametrize(
    ("slots", "head_dim", "merged", "period", "taps"),
    [(30, 16, 4, 3, 3), (40, 16, 9, 1, 5), (12, 16, 20, 4, 3), (30, 32, 3, 7, 1)],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_as_lists_and_loops(
    slots: int, head_dim: int, merged: int, period: int, taps: int, dtype: torch.dtype,
    kernels: bool, tmp_path: Path,
) -> None:  # fmt: skip
    given, heads = layer(slots, head_dim, period, dtype), heads_of(merged, head_dim, taps)
    heads.save(tmp_path / "heads")
    expected = given.keys.clone(), given.values.clone()
    for row in (0, 2):
        for head in range(HEADS):
            entries = given.entries(row, head)
            fold_overflow(entries, period, str(tmp_path / "heads"), LAYER)
            for entry in entries:
                expected[0][row, head, entry.slot] = entry.key
                expected[1][row, head, entry.slot] = entry.value
    ours = folded(given, heads, period, dtype, kernels)
    close = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for one, other, before in zip(ours, expected, (given.keys, given.values), strict=True):
        torch.testing.assert_close(one, other, rtol=close, atol=close)
        assert torch.equal((one == before).all(dim=-1), (other == before).all(dim=-1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_blocks_are_as_in_torch(dtype: torch.dtype) -> None:
    slots, head_dim, merged, period, taps = 1100, 64, 70, 16, 5
    given, heads = layer(slots, head_dim, period, dtype), heads_of(merged, head_dim, taps)
    torch_alone, ours = (folded(given, heads, period, dtype, kernels) for kernels in (False, True))
    close = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for one, other in zip(ours, torch_alone, strict=True):
        torch.testing.assert_close(one, other, rtol=close, atol=close)


class Operations(TorchDispatchMode):
    """What torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_torch_asks_for_no_convolution() -> None:
    """On a GPU cuDNN's are in TF32, unless told otherwise, which is off by 1e-4."""
    given, heads = layer(30, 16, 3, torch.float32), heads_of(4, 16, 3)
    with Operations() as asked:
        folded(given, heads, 3, torch.float32, kernels=False)
    assert "topk" in asked.names
    assert not any("convolution" in name for name in asked.names)
