# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""Linear layers for a handful of rows, where only the weights' bytes count.

Up to 16 rows, or 32 with the gate, one Triton kernel streams the weights better than cuBLAS does,
which splits the depth and adds the parts up in a launch of its own; beyond, cuBLAS is as good.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from scope.kernels import shared_memory
from scope.kernels.pointwise import silu_and_multiply

# What the blocks on their way take: tuned on an H100, and an A100 has as much.
_SHARED_MEMORY = 160 * 2**10


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weight + bias`` of ``[B, k]``, ``[n, k]`` and ``[n]``: ``[B, n]``."""
    if len(x) <= 16 and _suits(x, weight, bias):
        return _launch(x, weight, weight.shape[0], (32, 128, 8), gated=False)
    return functional.linear(x, weight, bias)


def gated_linear(x: Tensor, gate_up: Tensor, bias: Tensor | None = None) -> Tensor:
    """``silu(x gate) * (x up)`` of ``[B, k]`` and ``[2n, k]``, gate before up: ``[B, n]``."""
    if len(x) <= 32 and _suits(x, gate_up, bias):
        blocks = (32, 256, 4) if len(x) <= 16 else (64, 128, 5)
        return _launch(x, gate_up, gate_up.shape[0] // 2, blocks, gated=True)
    return silu_and_multiply(functional.linear(x, gate_up, bias))


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        bias is None
        and x.dtype in (torch.bfloat16, torch.float16)
        and weight.shape[0] % 128 == 0
        and weight.shape[1] % 256 == 0
        and shared_memory(x.device) >= _SHARED_MEMORY
    )


def _launch(
    x: Tensor, weight: Tensor, width: int, blocks: tuple[int, int, int], gated: bool
) -> Tensor:
    """Blocks are of this width and depth, and so many of them are on their way at once."""
    block_width, block_depth, stages = blocks
    output = x.new_empty(len(x), width)
    _linear[width // block_width,](
        x,
        weight,
        output,
        len(x),
        width,
        x.shape[1],
        GATED=gated,
        ROWS=16 if len(x) <= 16 else 32,
        WIDTH=block_width,
        DEPTH=block_depth,
        num_warps=4,
        num_stages=stages,
    )
    return output


@triton.jit
def _linear(
    x_ptr,
    weight_ptr,
    output_ptr,
    rows,
    width,
    depth,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
):
    row = tl.arange(0, ROWS)
    exists = (row < rows)[:, None]
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    k = tl.arange(0, DEPTH)
    x_ptrs = x_ptr + row[:, None] * depth + k[None, :]
    weight_ptrs = weight_ptr + column[None, :].to(tl.int64) * depth + k[:, None]
    output = tl.zeros((ROWS, WIDTH), tl.float32)
    up = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, depth, DEPTH):
        weight = tl.load(weight_ptrs + start)
        x = tl.load(x_ptrs + start, mask=exists, other=0.0)
        output = tl.dot(x, weight, output)
        if GATED:
            up = tl.dot(x, tl.load(weight_ptrs + width * depth + start), up)
    if GATED:
        output = output * tl.sigmoid(output) * up
    places = row[:, None] * width + column[None, :]
    tl.store(output_ptr + places, output.to(output_ptr.dtype.element_ty), mask=exists)
