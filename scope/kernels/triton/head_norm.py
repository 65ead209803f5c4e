# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""RMSNorm of single heads, as Qwen3 has it before RoPE."""

import triton
import triton.language as tl
from torch import Tensor


def norm_heads(
    states: Tensor,
    query_gain: Tensor,
    key_gain: Tensor,
    epsilon: float,
    query_heads: int,
    key_heads: int,
) -> None:
    """Norm every query and key head of ``[B, (H_q + 2 H) D]``, in place.

    Args:
        states: queries before keys before values, contiguous.
        query_gain: ``[D]``; the same for keys.
        epsilon: added to the mean square.
        query_heads: H_q.
        key_heads: H.
    """
    head_dim = len(query_gain)
    _norm_heads[len(states), query_heads + key_heads](
        states,
        query_gain,
        key_gain,
        states.stride(0),
        query_heads,
        head_dim,
        epsilon,
        BLOCK=triton.next_power_of_2(head_dim),
        num_warps=1,
    )


@triton.jit
def _norm_heads(
    states_ptr,
    query_gain_ptr,
    key_gain_ptr,
    stride,
    query_heads,
    head_dim,
    epsilon,
    BLOCK: tl.constexpr,
):
    head = tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < head_dim
    states_ptr += tl.program_id(0).to(tl.int64) * stride + head * head_dim + column
    if head < query_heads:
        gain = tl.load(query_gain_ptr + column, mask=inside, other=0.0)
    else:
        gain = tl.load(key_gain_ptr + column, mask=inside, other=0.0)
    states = tl.load(states_ptr, mask=inside, other=0.0)
    wide = states.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide) / head_dim + epsilon)
    # Rounded before the gain, as the models do.
    tl.store(states_ptr, normed.to(states.dtype) * gain, mask=inside)
