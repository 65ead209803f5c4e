# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""Linear layers for a handful of rows, where only the weights' bytes count.

One Triton kernel streams the weights better than cuBLAS does there. Two things make the difference:
a block of weights, not of the few rows, is the left factor that fills the tensor cores; and a
product too narrow for a large GPU is split over its depth into parts, which the RMSNorm that comes
after it sums up. Beyond the rows named here cuBLAS is as good. They and the tiles were found on an
H200 and an H100, for hidden sizes of 4,096 and 1,536 (results/decode_speed).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from scope.kernels import processors, shared_memory
from scope.kernels.triton.pointwise import silu_and_multiply

_MOST_PARTS = 8


@dataclass(frozen=True)
class _Tile:
    """Block of weights, how many of them are on their way at once, and warps that multiply them."""

    width: int
    depth: int
    stages: int
    warps: int = 4


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weight + bias`` of ``[B, k]``, ``[n, k]`` and ``[n]``: ``[B, n]``."""
    rows, width = x.shape[0], weight.shape[0]
    # The narrowest blocks that are not more than there are processors.
    programs = processors(x.device)
    if width > 32 * programs:
        tile, most_rows = _Tile(64, 128, stages=6), 64
    elif width > 16 * programs:
        tile, most_rows = _Tile(32, 128, stages=8), 64
    else:
        tile, most_rows = _Tile(16, 256, stages=8, warps=2), 32
    if rows > most_rows or not _suits(tile, x, width):
        return functional.linear(x, weight, bias)
    output = x.new_empty(1, rows, width)
    _launch(tile, x, weight, bias, output)
    return output[0]


def linear_in_parts(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` in parts ``[parts, B, n]`` to be summed up, float32 where there are several."""
    rows, width = x.shape[0], weight.shape[0]
    if rows > 128:
        return functional.linear(x, weight, bias)[None]
    tile = _Tile(64, 128, stages=6 if rows <= 64 else 4)
    parts = _parts(tile, x, width)
    if rows <= 32 and x.shape[1] % (256 * parts) == 0:
        tile = _Tile(64, 256, stages=4)
    if parts == 1 or not _suits(tile, x, width, parts):
        return linear(x, weight, bias)[None]
    output = x.new_empty(parts, rows, width, dtype=torch.float32)
    _launch(tile, x, weight, bias, output)
    return output


def gated_linear(x: Tensor, gate_up: Tensor, bias: Tensor | None = None) -> Tensor:
    """``silu(x gate) * (x up)`` of ``[B, k]`` and ``[2n, k]``, gate before up: ``[B, n]``."""
    rows, width = x.shape[0], gate_up.shape[0] // 2
    if rows > 128 or bias is not None:
        return silu_and_multiply(functional.linear(x, gate_up, bias))
    tile = _Tile(64, 128, stages=4) if rows <= 64 else _Tile(128, 64, stages=4, warps=8)
    if rows <= 64 and 1 < width / (tile.width * processors(x.device)) < 1.5:
        # A second wave would be almost empty; of these, two programs share a processor.
        tile = _Tile(64, 64, stages=4)
    if not _suits(tile, x, width, gated=True):
        return silu_and_multiply(functional.linear(x, gate_up, bias))
    output = x.new_empty(1, rows, width)
    _launch(tile, x, gate_up, None, output, gated=True)
    return output[0]


def _suits(tile: _Tile, x: Tensor, width: int, parts: int = 1, gated: bool = False) -> bool:
    return (
        x.dtype in (torch.bfloat16, torch.float16)
        and width % tile.width == 0
        and x.shape[1] % (tile.depth * parts) == 0
        and _stages(tile, x, gated) >= 2
    )


def _parts(tile: _Tile, x: Tensor, width: int) -> int:
    """As many as the depth allows and the processors have room for at once."""
    most = min(_MOST_PARTS, processors(x.device) * tile.width // width)
    fitting = (parts for parts in range(most, 1, -1) if x.shape[1] % (tile.depth * parts) == 0)
    return next(fitting, 1)


def _stages(tile: _Tile, x: Tensor, gated: bool) -> int:
    """As many as asked for, or as the GPU's shared memory holds."""
    height = tile.width * (2 if gated else 1) + _padded(len(x))
    room = shared_memory(x.device) - 2**10
    return min(tile.stages, room // (height * tile.depth * x.itemsize))


def _padded(rows: int) -> int:
    """Rows as tensor cores take them."""
    return max(16, triton.next_power_of_2(rows))


def _launch(
    tile: _Tile,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    gated: bool = False,
) -> None:
    """Fill ``[parts, B, n]``."""
    parts, rows, width = output.shape
    _linear[width // tile.width, parts](
        x,
        weight,
        bias,
        output,
        rows,
        width,
        x.shape[1],
        x.shape[1] // parts,
        BIAS=bias is not None,
        GATED=gated,
        ROWS=_padded(rows),
        WIDTH=tile.width,
        DEPTH=tile.depth,
        num_warps=tile.warps,
        num_stages=_stages(tile, x, gated),
    )


@triton.jit
def _linear(
    x_ptr,
    weight_ptr,
    bias_ptr,
    output_ptr,
    rows,
    width,
    depth,
    part_depth,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One part of a block of columns of the output."""
    part = tl.program_id(1)
    row = tl.arange(0, ROWS)
    exists = (row < rows)[None, :]
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    k = part * part_depth + tl.arange(0, DEPTH)
    x_ptrs = x_ptr + row[None, :] * depth + k[:, None]
    weight_ptrs = weight_ptr + column[:, None].to(tl.int64) * depth + k[None, :]
    output = tl.zeros((WIDTH, ROWS), tl.float32)
    up = tl.zeros((WIDTH, ROWS), tl.float32)
    for start in range(0, part_depth, DEPTH):
        weight = tl.load(weight_ptrs + start)
        x = tl.load(x_ptrs + start, mask=exists, other=0.0)
        output = tl.dot(weight, x, output)
        if GATED:
            up = tl.dot(tl.load(weight_ptrs + width * depth + start), x, up)
    if BIAS:
        bias = tl.load(bias_ptr + column).to(tl.float32)
        output += tl.where(part == 0, bias, 0.0)[:, None]
    if GATED:
        output = output * tl.sigmoid(output) * up
    places = (part * rows + row)[None, :] * width + column[:, None]
    tl.store(output_ptr + places, output.to(output_ptr.dtype.element_ty), mask=exists)
