"""The kernels attend to a prompt pool in few bits as plain torch does, whatever the widths."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from scope.kernels import reference
from scope.kernels.rounding import round_keys, round_values
from scope.kernels.tensors import (
    CompactTensors,
    KeyScale,
    NewTokens,
    Sight,
    SlotTensors,
    StepCounts,
)

pytest.importorskip("triton", reason="the kernels need Triton, which torch's CUDA builds bring")

from scope.kernels.triton import backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIGHT = Sight(0.2)
HALVES = [(torch.bfloat16, 1e-2), (torch.float16, 4e-3)]


@dataclass(frozen=True)
class Case:
    """Row 0 holds all groups of the pool, row 1 one of them; of slots both hold 20."""

    bits: int
    head_dim: int
    group: int
    key_channels: int | None = None
    tokens: int = 128
    heads: int = 1
    queries: int = 3

    def normal(self, *shape: int) -> Tensor:
        random = torch.Generator().manual_seed(sum(shape))
        return torch.randn(*shape, generator=random).to(DEVICE)

    def compact(self) -> CompactTensors:
        keys, values = self.normal(2, 2, self.heads, self.tokens, self.head_dim)
        keys, channels = keys + 5 * self.normal(1, self.heads, 1, self.head_dim), None
        if self.key_channels:
            chosen = torch.rand(2, self.heads, self.head_dim).argsort(-1)[..., : self.key_channels]
            channels = chosen.sort(-1).values.int().to(DEVICE)
            places = channels.long()[:, :, None].expand(-1, -1, self.tokens, -1)
            keys = keys.gather(3, places)
        positions = torch.arange(self.tokens, dtype=torch.int32, device=DEVICE)
        return CompactTensors(
            keys=round_keys(keys, self.bits, self.group),
            values=round_values(values, self.bits, min(self.group, self.head_dim)),
            key_bits=self.bits,
            value_bits=self.bits,
            group=self.group,
            channels=channels,
            positions=positions.expand(2, self.heads, -1).contiguous(),
            count=torch.tensor([self.tokens, self.group], dtype=torch.int32, device=DEVICE),
            filled=self.tokens,
        )

    def attended(self, dtype: torch.dtype, eight: bool = False) -> tuple[Tensor, Tensor]:
        """By the kernels from numbers of a type, and from the same ones by torch in float32."""
        keys, values = self.normal(2, 2, self.heads, 24, self.head_dim)
        key_scale = None
        if eight:
            scale = self.normal(2, self.heads, self.head_dim).abs() + 0.1
            key_scale = KeyScale(scale, self.normal(2, self.heads, self.head_dim))
        stored = torch.float8_e4m3fn if eight else dtype
        positions = torch.arange(24, dtype=torch.int32, device=DEVICE).expand(2, self.heads, -1)
        positions = (self.tokens + positions).where(positions < 20, -1)
        slots = SlotTensors(
            keys.to(stored),
            values.to(stored),
            positions,
            positions.clone(),
            torch.full((2, self.heads), 20, dtype=torch.int32, device=DEVICE),
            key_scale,
            self.compact(),
        )
        counts = torch.tensor([[self.tokens + 20] * 2, [20] * 2, [0] * 2], device=DEVICE).int()
        now = StepCounts(counts[0], counts[1], counts[2], counts[2], 0, 24)
        queries = self.normal(2, self.heads * self.queries, self.head_dim)
        newest = keys[:, :, 0], values[:, :, 0]
        new = NewTokens(*(part.to(dtype).contiguous() for part in (queries, *newest)))
        wide = replace(
            slots,
            keys=slots.keys.clone() if eight else slots.keys.float(),
            values=slots.values.clone() if eight else slots.values.float(),
            positions=positions.clone(),
            ranks=positions.clone(),
        )
        exact = NewTokens(new.queries.float(), new.keys.float(), new.values.float())
        expected, _ = reference.attend(wide, now, exact, SIGHT)
        return backend.attend(slots, now, new, SIGHT)[0].float(), expected


WIDTHS = [(16, 16), (32, 32), (64, 16), (128, 32), (64, 128)]


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize(("head_dim", "group"), WIDTHS)
def test_same_as_torch(bits: int, head_dim: int, group: int) -> None:
    """Words hold more channels than a group, as many, and fewer; and too few for a product."""
    torch.testing.assert_close(
        *Case(bits, head_dim, group).attended(torch.float32), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(("bits", "key_channels"), [(8, 24), (4, 40), (3, 48), (2, 8)])
def test_same_as_torch_where_keys_have_few_channels(bits: int, key_channels: int) -> None:
    case = Case(bits, 64, 32, key_channels)
    torch.testing.assert_close(*case.attended(torch.float32), rtol=0, atol=1e-5)


@pytest.mark.skipif(DEVICE == "cpu", reason="half precision is checked on a GPU")
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), HALVES)
def test_half_precision(bits: int, dtype: torch.dtype, tolerance: float) -> None:
    for case in (Case(bits, 128, 32), Case(bits, 64, 16, 48)):
        for eight in (False, True):
            got, expected = case.attended(dtype, eight)
            assert float((got - expected).norm() / expected.norm()) < tolerance
