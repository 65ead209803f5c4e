"""The kernels around attention do what the modules that they replace do."""

import pytest
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

pytest.importorskip("triton", reason="the kernels need Triton, which torch's CUDA builds bring")

from scope.kernels.linear import gated_linear, linear
from scope.kernels.pointwise import add_and_norm, silu_and_multiply

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


@pytest.mark.parametrize("rows", [1, 5, 16, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_linear(rows: int, dtype: torch.dtype) -> None:
    x, weight = random(rows, 256, dtype=dtype), random(96, 256, seed=1, dtype=dtype) / 16
    exact = functional.linear(x.double(), weight.double())
    tolerance = 1e-4 if dtype == torch.float32 else 5e-3
    torch.testing.assert_close(linear(x, weight).double(), exact, rtol=0, atol=tolerance)
    weight = torch.cat([weight, weight.flip(0)[:32]])
    gate, up = functional.linear(x.double(), weight.double()).chunk(2, dim=1)
    torch.testing.assert_close(
        gated_linear(x, weight).double(), functional.silu(gate) * up, rtol=0, atol=tolerance
    )


def test_linear_with_bias() -> None:
    x, weight, bias = random(3, 256), random(64, 256, seed=1), random(64, seed=2)
    torch.testing.assert_close(linear(x, weight, bias), functional.linear(x, weight, bias))
    gate, up = functional.linear(x, weight, bias).chunk(2, dim=1)
    torch.testing.assert_close(gated_linear(x, weight, bias), functional.silu(gate) * up)


@pytest.mark.parametrize("width", [64, 1500])
def test_pointwise(width: int) -> None:
    norm = LlamaRMSNorm(width).to(DEVICE)
    norm.weight.data = random(width, seed=3)
    hidden, branch = random(3, width), random(3, width, seed=1)
    expected = hidden + branch
    stream = hidden.clone()
    output = add_and_norm(stream, branch, norm.weight, norm.variance_epsilon)
    torch.testing.assert_close(stream, expected)
    torch.testing.assert_close(output, norm(expected))
    output = add_and_norm(stream, None, norm.weight, norm.variance_epsilon)
    torch.testing.assert_close(output, norm(expected))
    gate_up = random(3, 2 * width, seed=4)
    gate, up = gate_up.chunk(2, dim=1)
    torch.testing.assert_close(silu_and_multiply(gate_up), functional.silu(gate) * up)
