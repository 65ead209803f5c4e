# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""RoPE of all heads of a prompt; a decode step's attention applies it itself."""

import triton
import triton.language as tl
from torch import Tensor


def rotate_heads(states: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn heads ``[L, n, D]`` by their positions, in place.

    Args:
        states: any strides between tokens, the heads of one side by side.
        cos: ``[L, D]``, contiguous; the same for sin.
    """
    length, heads, head_dim = states.shape
    _rotate_heads[length,](
        states,
        cos,
        sin,
        states.stride(0),
        heads,
        HEADS=triton.next_power_of_2(heads),
        HALF=head_dim // 2,
    )


@triton.jit
def _rotate_heads(
    states_ptr, cos_ptr, sin_ptr, stride, heads, HEADS: tl.constexpr, HALF: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, HALF)[None, :]
    turns = row * 2 * HALF + channel
    cos, sin = tl.load(cos_ptr + turns).to(tl.float32), tl.load(sin_ptr + turns).to(tl.float32)
    cos_2 = tl.load(cos_ptr + turns + HALF).to(tl.float32)
    sin_2 = tl.load(sin_ptr + turns + HALF).to(tl.float32)
    places = states_ptr + row * stride + head * 2 * HALF + channel
    exists = head < heads
    first = tl.load(places, mask=exists, other=0.0).to(tl.float32)
    second = tl.load(places + HALF, mask=exists, other=0.0).to(tl.float32)
    dtype = states_ptr.dtype.element_ty
    tl.store(places, (first * cos - second * sin).to(dtype), mask=exists)
    tl.store(places + HALF, (second * cos_2 + first * sin_2).to(dtype), mask=exists)
