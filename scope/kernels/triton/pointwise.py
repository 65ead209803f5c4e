# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""What lies between the matrix products of a decoder layer, one Triton launch each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from scope.kernels.triton.chance import mixed

_BLOCK = 1024
_TWO_TO_MINUS_32 = tl.constexpr(2.0**-32)
_LARGEST_BELOW_1 = tl.constexpr(1 - 2.0**-24)
_SMALL = tl.constexpr(2.0**-8)


def add_and_norm(hidden: Tensor, branch: Tensor | None, gain: Tensor, epsilon: float) -> Tensor:
    """Add a branch to the residual stream ``[B, n]``, in place, and return its RMSNorm.

    The branch comes in parts ``[parts, B, n]``, which are summed up first.
    """
    rows, width = hidden.shape
    output = torch.empty_like(hidden)
    _add_and_norm[rows,](
        hidden,
        branch,
        gain,
        output,
        width,
        epsilon,
        BLOCK=triton.next_power_of_2(width),
        PARTS=0 if branch is None else branch.shape[0],
        num_warps=16,
    )
    return output


def silu_and_multiply(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of ``[B, 2n]``: ``[B, n]``."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    output = gate_up.new_empty(rows, width)
    _silu_and_multiply[rows, triton.cdiv(width, _BLOCK)](gate_up, output, width, BLOCK=_BLOCK)
    return output


def argmax(logits: Tensor) -> Tensor:
    """Index of the largest of each row of ``[B, n]``, the first of equals: ``[B]`` int64.

    torch's own takes three times as long for a few long rows.
    """
    rows, width = logits.shape
    output = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _argmax[rows,](logits, output, logits.stride(0), width, BLOCK=2**15, num_warps=32)
    return output


def sample(scores: Tensor, keys: Tensor) -> Tensor:
    """A draw from the softmax of each row of ``[B, n]`` float32; see `scope.kernels.sample`."""
    rows, width = scores.shape
    output = torch.empty(rows, dtype=torch.int64, device=scores.device)
    _sample[rows,](scores, keys, output, scores.stride(0), width, BLOCK=2**13, num_warps=16)
    return output


@triton.jit
def _add_and_norm(
    hidden_ptr,
    branch_ptr,
    gain_ptr,
    output_ptr,
    width,
    epsilon,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = tl.program_id(0).to(tl.int64) * width + column
    hidden = tl.load(hidden_ptr + place, mask=inside, other=0.0)
    dtype = hidden.dtype
    if PARTS > 0:
        branch = tl.load(branch_ptr + place, mask=inside, other=0.0)
        for part in tl.static_range(1, PARTS):
            part_ptr = branch_ptr + part * tl.num_programs(0) * width
            branch += tl.load(part_ptr + place, mask=inside, other=0.0)
        hidden += branch.to(dtype)
        tl.store(hidden_ptr + place, hidden, mask=inside)
    wide = hidden.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide) / width + epsilon)
    # Rounded before the gain, as the models do.
    gain = tl.load(gain_ptr + column, mask=inside, other=0.0)
    tl.store(output_ptr + place, normed.to(dtype) * gain, mask=inside)


@triton.jit
def _silu_and_multiply(gate_up_ptr, output_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate_ptr = gate_up_ptr + row * 2 * width + column
    gate = tl.load(gate_ptr, mask=inside, other=0.0)
    up = tl.load(gate_ptr + width, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide * tl.sigmoid(wide)).to(gate.dtype)
    tl.store(output_ptr + row * width + column, silu * up, mask=inside)


@triton.jit
def _argmax(logits_ptr, output_ptr, stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    logits_ptr += row * stride
    largest, where = float("-inf"), 0
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + column, mask=column < width, other=float("-inf"))
        value, index = tl.max(logits.to(tl.float32), axis=0, return_indices=True)
        where = tl.where(value > largest, start + index, where)
        largest = tl.maximum(value, largest)
    tl.store(output_ptr + row, where)


@triton.jit
def _sample(scores_ptr, keys_ptr, output_ptr, stride, width, BLOCK: tl.constexpr):
    """As `reference.sample`."""
    row = tl.program_id(0)
    scores_ptr += row * stride
    key = tl.load(keys_ptr + row)
    largest, where = float("-inf"), 0
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        scores = tl.load(scores_ptr + column, mask=column < width, other=float("-inf"))
        chance = mixed(mixed(column.to(tl.int64)) + key)
        uniform = (chance.to(tl.float32) + 0.5) * _TWO_TO_MINUS_32
        uniform = tl.minimum(uniform, _LARGEST_BELOW_1)
        # -log(1 - u) of a small u, where 1 - u has lost its bits, is u + u^2/2 + u^3/3.
        waits = -tl.log(1 - uniform)
        waits = tl.where(uniform < _SMALL, uniform * (1 + uniform * (0.5 + uniform / 3)), waits)
        value, index = tl.max(scores - tl.log(waits), axis=0, return_indices=True)
        where = tl.where(value > largest, start + index, where)
        largest = tl.maximum(value, largest)
    tl.store(output_ptr + row, where)
