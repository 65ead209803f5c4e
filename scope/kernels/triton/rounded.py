# ruff: noqa: ANN201, ANN202  (what a kernel returns, Triton knows)
"""Attention to what is held in few bits: bytes are read, and numbers made of them in registers."""

import triton
import triton.language as tl


@triton.jit
def restored_keys(
    packed_ptr, scale_ptr, zero_ptr, token, d, group, BITS: tl.constexpr, HEAD_DIM: tl.constexpr
):
    """``[D, tokens]`` float32 keys of tokens of one group."""
    codes = _codes(packed_ptr, token[None, :], d[:, None], BITS, HEAD_DIM)
    scale = tl.load(scale_ptr + group * HEAD_DIM + d).to(tl.float32)
    zero = tl.load(zero_ptr + group * HEAD_DIM + d).to(tl.float32)
    return codes * scale[:, None] + zero[:, None]


@triton.jit
def restored_values(
    packed_ptr,
    scale_ptr,
    zero_ptr,
    token,
    d,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """``[tokens, D]`` float32 values, rounded in groups of channels."""
    codes = _codes(packed_ptr, token[:, None], d[None, :], BITS, HEAD_DIM)
    groups = token[:, None] * (HEAD_DIM // GROUP) + d[None, :] // GROUP
    scale, zero = tl.load(scale_ptr + groups), tl.load(zero_ptr + groups)
    return codes * scale.to(tl.float32) + zero.to(tl.float32)


@triton.jit
def _codes(packed_ptr, token, d, BITS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Codes of tokens and channels, which broadcast, as `rounding.Codes` packs them."""
    packed_ptr += token * (HEAD_DIM * BITS // 8)
    if BITS == 3:
        low = _part(packed_ptr, d, 2, HEAD_DIM)
        high = _part(packed_ptr + HEAD_DIM // 4, d, 1, HEAD_DIM)
        return _floats(low + 4 * high)
    return _floats(_part(packed_ptr, d, BITS, HEAD_DIM))


@triton.jit
def _floats(codes):
    """As the last bits of 2^23 codes need no conversion, which runs at a quarter of the rate."""
    return (codes | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def _part(packed_ptr, d, BITS: tl.constexpr, HEAD_DIM: tl.constexpr):
    width: tl.constexpr = HEAD_DIM * BITS // 8
    bytes_read = tl.load(packed_ptr + d % width).to(tl.int32)
    return (bytes_read >> (BITS * (d // width))) & ((1 << BITS) - 1)
