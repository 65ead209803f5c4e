# ruff: noqa: ANN201, ANN202  (what a kernel returns, Triton knows)
"""Attention to what is held in less room: few bits, of which numbers are made in registers."""

import triton
import triton.language as tl


@triton.jit
def compact_keys(
    packed_ptr,
    scale_ptr,
    zero_ptr,
    token,
    inside,
    k,
    stored,
    group,
    BITS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """``[k, tokens]`` keys, 0 in channels that are not stored; in few bits, tokens of one group."""
    if BITS is None:
        places = token[None, :] * CHANNELS + k[:, None]
        keys = tl.load(packed_ptr + places, mask=stored[:, None] & inside[None, :], other=0.0)
    else:
        # Tokens come in whole groups, and what is read for other channels are bytes of these.
        codes = _codes(packed_ptr, token[None, :], k[:, None], BITS, CHANNELS)
        scale = tl.load(scale_ptr + group * CHANNELS + k, mask=stored, other=0.0).to(tl.float32)
        zero = tl.load(zero_ptr + group * CHANNELS + k, mask=stored, other=0.0).to(tl.float32)
        keys = codes * scale[:, None] + zero[:, None]
    return keys


@triton.jit
def compact_values(
    packed_ptr,
    scale_ptr,
    zero_ptr,
    token,
    inside,
    d,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """``[tokens, D]`` values, in few bits rounded in groups of channels."""
    if BITS is None:
        places = token[:, None] * HEAD_DIM + d[None, :]
        values = tl.load(packed_ptr + places, mask=inside[:, None], other=0.0)
    else:
        codes = _codes(packed_ptr, token[:, None], d[None, :], BITS, HEAD_DIM)
        groups = token[:, None] * (HEAD_DIM // GROUP) + d[None, :] // GROUP
        scale, zero = tl.load(scale_ptr + groups), tl.load(zero_ptr + groups)
        values = codes * scale.to(tl.float32) + zero.to(tl.float32)
    return values


@triton.jit
def _codes(packed_ptr, token, d, BITS: tl.constexpr, WIDTH: tl.constexpr):
    """Codes of tokens and channels, which broadcast, as `rounding.Codes` packs them."""
    packed_ptr += token * (WIDTH * BITS // 8)
    if BITS == 3:
        low = _part(packed_ptr, d, 2, WIDTH)
        high = _part(packed_ptr + WIDTH // 4, d, 1, WIDTH)
        return _floats(low + 4 * high)
    return _floats(_part(packed_ptr, d, BITS, WIDTH))


@triton.jit
def _floats(codes):
    """As the last bits of 2^23 codes need no conversion, which runs at a quarter of the rate."""
    return (codes | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def _part(packed_ptr, d, BITS: tl.constexpr, WIDTH: tl.constexpr):
    width: tl.constexpr = WIDTH * BITS // 8
    bytes_read = tl.load(packed_ptr + d % width).to(tl.int32)
    return (bytes_read >> (BITS * (d // width))) & ((1 << BITS) - 1)
