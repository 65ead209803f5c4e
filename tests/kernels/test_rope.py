"""Heads are turned in place, and what lies beside them stays."""

import pytest
import torch

from scope.kernels.tensors import rotated
from tests.core.tiny import backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("heads", "head_dim", "dtype"),
    [(3, 16, torch.float32), (8, 64, torch.float32), (5, 128, torch.bfloat16)],
)
def test_rotate_heads(heads: int, head_dim: int, dtype: torch.dtype) -> None:
    backend(True)  # or skip
    from scope.kernels.triton.rope import rotate_heads

    random = torch.Generator().manual_seed(heads)
    states = torch.randn(11, heads + 2, head_dim, generator=random).to(DEVICE, dtype)
    cos, sin = torch.randn(2, 11, head_dim, generator=random).to(DEVICE, dtype)
    before = states.clone()
    turned = rotated(before[:, :heads].float(), cos[:, None].float(), sin[:, None].float())
    rotate_heads(states[:, :heads], cos, sin)
    torch.testing.assert_close(states[:, :heads], turned.to(dtype))
    assert torch.equal(states[:, heads:], before[:, heads:])
