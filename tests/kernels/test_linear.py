"""The kernels around attention do what the modules that they replace do."""

import pytest
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

pytest.importorskip("triton", reason="the kernels need Triton, which torch's CUDA builds bring")

from scope.kernels.linear import Normed, add_linear, gated_linear, linear, norm
from scope.kernels.pointwise import add_and_norm, argmax, silu_and_multiply

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3}
if DEVICE == "cuda":  # Triton's interpreter does not calculate in it
    TOLERANCE[torch.bfloat16] = 4e-2


@pytest.mark.parametrize("rows", [1, 16, 17, 33])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("biased", [False, True])
def test_linear(rows: int, dtype: torch.dtype, biased: bool) -> None:
    x, weight = random(rows, 256, dtype=dtype), random(128, 256, seed=1, dtype=dtype) / 16
    bias = random(128, seed=2, dtype=dtype) if biased else None
    exact = functional.linear(x.double(), weight.double(), bias.double() if biased else None)
    close(linear(x, weight, bias), exact, TOLERANCE[dtype])
    weight = torch.cat([weight, weight.flip(0)])
    bias = torch.cat([bias, bias.flip(0)]) if biased else None
    exact = functional.linear(x.double(), weight.double(), bias.double() if biased else None)
    gate, up = exact.chunk(2, dim=1)
    gated = gated_linear(Normed(x, epsilon=0.0), weight, bias)
    close(gated, functional.silu(gate) * up, 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [1, 16, 17, 33])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("own_launch", [False, True])
def test_norm_between_linears(
    rows: int, dtype: torch.dtype, biased: bool, own_launch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a norm has its own launch or is left to the linears on both sides of it."""
    monkeypatch.setattr("scope.kernels.linear._WIDE_RANGE", () if own_launch else tuple(TOLERANCE))
    x, hidden = random(rows, 256, dtype=dtype), 9 * random(rows, 256, seed=1, dtype=dtype)
    weight, bias = random(256, 256, seed=2, dtype=dtype) / 16, None
    after = LlamaRMSNorm(256, eps=0.1).to(DEVICE)
    after.weight.data = random(256, seed=4, dtype=dtype)
    if biased:
        bias = random(256, seed=3, dtype=dtype)
    stream = hidden.clone()
    normed = add_linear(stream, x, weight, bias, after.weight, after.variance_epsilon)
    left_over = not own_launch and rows <= 32 and dtype != torch.float32
    assert (normed.squares is not None) == left_over
    expected = hidden + functional.linear(x, weight, bias)
    close(stream, expected.double(), 4 * TOLERANCE[dtype])
    wide = stream.double()
    exact = wide * torch.rsqrt(wide.pow(2).mean(dim=1, keepdim=True) + 0.1) * after.weight.double()
    close(normed.divided(), exact, 2 * TOLERANCE[dtype])
    following = weight.roll(5, 0)
    exact = functional.linear(exact, following.double())
    close(linear(normed, following), exact, 2 * TOLERANCE[dtype])
    gated = gated_linear(normed, torch.cat([following, weight]))
    gate, up = exact, functional.linear(normed.divided().double(), weight.double())
    close(gated, functional.silu(gate) * up, 4 * TOLERANCE[dtype])


def test_first_norm() -> None:
    hidden, module = random(3, 64), LlamaRMSNorm(64).to(DEVICE)
    module.weight.data = random(64, seed=3)
    normed = norm(hidden, module.weight, module.variance_epsilon)
    torch.testing.assert_close(normed.divided(), module(hidden))


def close(actual: torch.Tensor, exact: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.double(), exact, rtol=tolerance, atol=tolerance)


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


def test_argmax_is_the_first_of_equals() -> None:
    logits = random(3, 70_000)
    logits[1, [40_000, 69_999]] = 9.0
    logits[2, [5, 6]] = 9.0
    assert argmax(logits).tolist() == [logits[0].argmax().item(), 40_000, 5]
    assert argmax(logits.half()).tolist()[1:] == [40_000, 5]
    assert argmax(torch.full((1, 3), -torch.inf, device=DEVICE)).tolist() == [0]
