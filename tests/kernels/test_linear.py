"""The kernels around attention do what the modules that they replace do."""

import pytest
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

pytest.importorskip("triton", reason="the kernels need Triton, which torch's CUDA builds bring")

from scope.kernels.triton import linear as linear_module
from scope.kernels.triton.linear import gated_linear, linear, linear_in_parts
from scope.kernels.triton.pointwise import add_and_norm, argmax, silu_and_multiply

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3}
if DEVICE == "cuda":  # Triton's interpreter does not calculate in it
    TOLERANCE[torch.bfloat16] = 4e-2


@pytest.mark.parametrize("rows", [1, 16, 17, 33, 65, 129])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("processors", "parts"), [(1, 1), (8, 2), (132, 4)])
def test_linear(
    rows: int,
    dtype: torch.dtype,
    biased: bool,
    processors: int,
    parts: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear_module, "processors", lambda device: processors)
    x, weight = random(rows, 512, dtype=dtype), random(256, 512, seed=1, dtype=dtype) / 16
    bias = random(256, seed=2, dtype=dtype) if biased else None
    exact = functional.linear(x.double(), weight.double(), bias.double() if biased else None)
    close(linear(x, weight, bias), exact, TOLERANCE[dtype])
    branch = linear_in_parts(x, weight, bias)
    assert len(branch) == (parts if rows <= 128 and dtype != torch.float32 else 1)
    close(branch.sum(dim=0), exact, TOLERANCE[dtype])
    gate, up = exact.chunk(2, dim=1)
    close(gated_linear(x, weight, bias), functional.silu(gate) * up, 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE)[1:])
def test_wide_linear(dtype: torch.dtype) -> None:
    x, weight = random(2, 128, dtype=dtype), random(6144, 128, seed=1, dtype=dtype) / 16
    close(linear(x, weight), functional.linear(x.double(), weight.double()), TOLERANCE[dtype])


def close(actual: torch.Tensor, exact: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("width", [64, 1500])
@pytest.mark.parametrize("parts", [0, 1, 3])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_add_and_norm(width: int, parts: int, dtype: torch.dtype) -> None:
    norm = LlamaRMSNorm(width, eps=0.1).to(DEVICE, dtype)
    norm.weight.data = random(width, seed=3, dtype=dtype)
    stream, branch = random(3, width, dtype=dtype), random(parts, 3, width, seed=1)
    if parts == 1:
        branch = branch.to(dtype)
    expected = stream + branch.sum(dim=0).to(dtype)
    output = add_and_norm(stream, branch if parts else None, norm.weight, norm.variance_epsilon)
    torch.testing.assert_close(stream, expected)
    torch.testing.assert_close(output, norm(expected))


@pytest.mark.parametrize("width", [64, 1500])
def test_silu_and_multiply(width: int) -> None:
    gate, up = random(3, width), random(3, width, seed=1)
    output = silu_and_multiply(torch.cat([gate, up], dim=1))
    torch.testing.assert_close(output, functional.silu(gate) * up)


def test_argmax_is_the_first_of_equals() -> None:
    logits = random(3, 70_000)
    logits[1, [40_000, 69_999]] = 9.0
    logits[2, [5, 6]] = 9.0
    assert argmax(logits).tolist() == [logits[0].argmax().item(), 40_000, 5]
    assert argmax(logits.half()).tolist()[1:] == [40_000, 5]
    assert argmax(torch.full((1, 3), -torch.inf, device=DEVICE)).tolist() == [0]
