# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""Linear layers for a handful of rows, where only the weights' bytes count.

Up to 32 rows one Triton kernel streams the weights better than cuBLAS does, which splits the depth
and adds the parts up in a launch of its own; beyond, cuBLAS is as good.

Each launch costs microseconds beside its bytes, so RMSNorm has none of its own there. Dividing by
the root mean square commutes with a matrix product: whoever adds to the residual stream also
multiplies by the next norm's gain and sums the squares of what it adds to, and the next product
divides.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from scope.kernels import shared_memory
from scope.kernels.pointwise import add_and_norm, silu_and_multiply

# What the blocks on their way take: tuned on an H100 and an H200, and an A100 has as much.
_SHARED_MEMORY = 160 * 2**10
# Times the gain, but not yet divided, the residual stream may be too large for float16.
_WIDE_RANGE = (torch.bfloat16,)


@dataclass(frozen=True)
class Normed:
    """RMSNorm of the residual stream.

    Attributes:
        states: ``[B, n]``, times the gain.
        epsilon: of the norm.
        squares: ``[B, parts]`` float32 sums of squares of the stream, where the states are yet to
            be divided by their root mean square; None where they have been.
    """

    states: Tensor
    epsilon: float
    squares: Tensor | None = None

    def divided(self) -> Tensor:
        """``[B, n]``, normalised."""
        if self.squares is None:
            return self.states
        mean = self.squares.sum(dim=1, keepdim=True) / self.states.shape[1]
        return (self.states * torch.rsqrt(mean + self.epsilon)).to(self.states.dtype)


def norm(hidden: Tensor, gain: Tensor, epsilon: float) -> Normed:
    """RMSNorm of ``[B, n]``."""
    return Normed(add_and_norm(hidden, None, gain, epsilon), epsilon)


def linear(x: Normed | Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weight + bias`` of ``[B, k]``, ``[n, k]`` and ``[n]``: ``[B, n]``."""
    x = x if isinstance(x, Normed) else Normed(x, epsilon=0.0)
    if _suits(x.states, weight):
        return _launch(x, weight, bias, weight.shape[0], _blocks(weight.shape[0]))
    return functional.linear(x.divided(), weight, bias)


def gated_linear(x: Normed, gate_up: Tensor, bias: Tensor | None = None) -> Tensor:
    """``silu(x gate) * (x up)`` of ``[B, k]`` and ``[2n, k]``, gate before up: ``[B, n]``."""
    if bias is None and _suits(x.states, gate_up):
        return _launch(x, gate_up, None, gate_up.shape[0] // 2, (64, 128, 4), gated=True)
    return silu_and_multiply(functional.linear(x.divided(), gate_up, bias))


def add_linear(
    hidden: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor, epsilon: float
) -> Normed:
    """Add ``x weight + bias`` to the residual stream ``[B, n]``, in place: its RMSNorm."""
    if x.dtype not in _WIDE_RANGE or not _suits(x, weight):
        return Normed(add_and_norm(hidden, linear(x, weight, bias), gain, epsilon), epsilon)
    width, blocks = weight.shape[0], _blocks(weight.shape[0])
    squares = x.new_empty(len(x), width // blocks[0], dtype=torch.float32)
    stream = (hidden, gain, squares)
    states = _launch(Normed(x, epsilon), weight, bias, width, blocks, stream=stream)
    return Normed(states, epsilon, squares)


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        len(x) <= 32
        and x.dtype in (torch.bfloat16, torch.float16)
        and weight.shape[0] % 128 == 0
        and weight.shape[1] % 256 == 0
        and shared_memory(x.device) >= _SHARED_MEMORY
    )


def _blocks(width: int) -> tuple[int, int, int]:
    """Wide blocks, where they still occupy most of a large GPU."""
    return (64, 128, 6) if width >= 6144 else (32, 128, 8)


def _launch(
    x: Normed,
    weight: Tensor,
    bias: Tensor | None,
    width: int,
    blocks: tuple[int, int, int],
    gated: bool = False,
    stream: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
) -> Tensor:
    """Blocks are of this width and depth, and so many of them are on their way at once."""
    block_width, block_depth, stages = blocks
    rows, depth = x.states.shape
    hidden, gain, new_squares = stream
    parts = 0 if x.squares is None else x.squares.shape[1]
    output = x.states.new_empty(rows, width)
    _linear[width // block_width,](
        x.states,
        x.squares,
        weight,
        bias,
        hidden,
        gain,
        output,
        new_squares,
        rows,
        width,
        depth,
        parts,
        x.epsilon,
        DIVIDE=x.squares is not None,
        BIAS=bias is not None,
        GATED=gated,
        ADD=hidden is not None,
        ROWS=16 if rows <= 16 else 32,
        WIDTH=block_width,
        DEPTH=block_depth,
        PARTS=triton.next_power_of_2(max(parts, 1)),
        num_warps=4,
        num_stages=stages,
    )
    return output


@triton.jit
def _linear(
    x_ptr,
    squares_ptr,
    weight_ptr,
    bias_ptr,
    hidden_ptr,
    gain_ptr,
    output_ptr,
    new_squares_ptr,
    rows,
    width,
    depth,
    parts,
    epsilon,
    DIVIDE: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
):
    # A block of weights is the left factor and fills the tensor cores; the rows are few.
    row = tl.arange(0, ROWS)
    exists = (row < rows)[None, :]
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    places = row[None, :] * width + column[:, None]
    k = tl.arange(0, DEPTH)
    x_ptrs = x_ptr + row[None, :] * depth + k[:, None]
    weight_ptrs = weight_ptr + column[:, None].to(tl.int64) * depth + k[None, :]
    if DIVIDE:
        part = tl.arange(0, PARTS)
        mask = (row < rows)[:, None] & (part < parts)[None, :]
        squares = tl.load(squares_ptr + row[:, None] * parts + part[None, :], mask=mask, other=0.0)
    output = tl.zeros((WIDTH, ROWS), tl.float32)
    up = tl.zeros((WIDTH, ROWS), tl.float32)
    for start in range(0, depth, DEPTH):
        weight = tl.load(weight_ptrs + start)
        x = tl.load(x_ptrs + start, mask=exists, other=0.0)
        output = tl.dot(weight, x, output)
        if GATED:
            up = tl.dot(tl.load(weight_ptrs + width * depth + start), x, up)
    if DIVIDE:
        scale = tl.rsqrt(tl.sum(squares, axis=1) / depth + epsilon)[None, :]
        output *= scale
        up *= scale
    if BIAS:
        output += tl.load(bias_ptr + column).to(tl.float32)[:, None]
    if GATED:
        output = output * tl.sigmoid(output) * up
    if ADD:
        # Loaded before the loop, this would hold up the weights.
        hidden = tl.load(hidden_ptr + places, mask=exists, other=0.0)
        gain = tl.load(gain_ptr + column).to(tl.float32)
        hidden += output.to(hidden.dtype)
        tl.store(hidden_ptr + places, hidden, mask=exists)
        wide = hidden.to(tl.float32)
        block = row * tl.num_programs(0) + tl.program_id(0)
        tl.store(new_squares_ptr + block, tl.sum(wide * wide, axis=0), mask=row < rows)
        output = wide * gain[:, None]
    tl.store(output_ptr + places, output.to(output_ptr.dtype.element_ty), mask=exists)
