# ruff: noqa: ANN201  (what a kernel returns, Triton knows)
"""Queries and keys that come without their positions."""

import triton
import triton.language as tl


@triton.jit
def rotated(states_ptr, cos_ptr, sin_ptr, d, mask, ROTATE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Load states ``[..., D]``, turned by RoPE where they come without."""
    state = tl.load(states_ptr + d, mask=mask, other=0.0)
    if ROTATE:
        half: tl.constexpr = HEAD_DIM // 2
        other = tl.load(states_ptr + (d + half) % HEAD_DIM, mask=mask, other=0.0).to(tl.float32)
        other = tl.where(d < half, -other, other)
        cos, sin = tl.load(cos_ptr + d).to(tl.float32), tl.load(sin_ptr + d).to(tl.float32)
        state = (state.to(tl.float32) * cos + other * sin).to(state.dtype)
    return state
