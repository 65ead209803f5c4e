# ruff: noqa: ANN201, ANN202  (what a kernel returns, Triton knows)
"""Attention to what is held in less room: few bits, of which numbers are made in registers.

A word holds a number of each plane; without few bits it is one number, and there is one plane.
"""

import triton
import triton.language as tl

from scope.kernels.tensors import FREE
from scope.kernels.triton.rotary import rotated
from scope.kernels.triton.softmax import joined
from scope.kernels.triton.words import from_codes, grid

_FREE = tl.constexpr(FREE)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def attend_compact(
    group_ptr,
    cos_ptr,
    sin_ptr,
    grouped,
    keys_ptr,
    key_grid_ptr,
    values_ptr,
    value_grid_ptr,
    positions_ptr,
    channels_ptr,
    count_ptr,
    maxima_ptr,
    totals_ptr,
    weighted_ptr,
    pair,
    split,
    splits,
    slots,
    oldest,
    scaling,
    HEAD_DIM: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    ROTATE: tl.constexpr,
    KEY_CHANNELS: tl.constexpr,
    KEY_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    KEY_GROUP: tl.constexpr,
    VALUE_GROUP: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    """Attend to one split of what a head, the pair-th, holds there.

    ``maxima_ptr``, ``totals_ptr`` ``[G]`` and ``weighted_ptr`` ``[G]``, of ``D`` channels each, are
    where it goes. Tokens at ``oldest`` or before are not seen.
    """
    half: tl.constexpr = NUMBERS.primitive_bitwidth == 16
    key_planes: tl.constexpr = planes_of(KEY_BITS)
    key_words: tl.constexpr = KEY_CHANNELS // key_planes
    k = tl.arange(0, block_of(key_words))
    queries = ()
    for plane in tl.static_range(key_planes):
        channel = tl.where(k < key_words, plane * key_words + k, 0)
        if channels_ptr is not None:
            channel = tl.load(channels_ptr + pair * KEY_CHANNELS + channel)
        mask = grouped[:, None] & (k < key_words)[None, :]
        query = rotated(group_ptr, cos_ptr, sin_ptr, channel[None, :], mask, ROTATE, HEAD_DIM)
        queries += (query.to(NUMBERS),)
    value_planes: tl.constexpr = planes_of(VALUE_BITS)
    value_words: tl.constexpr = HEAD_DIM // value_planes
    width: tl.constexpr = min(value_words, VALUE_GROUP)
    groups: tl.constexpr = HEAD_DIM // VALUE_GROUP
    v = tl.arange(0, block_of(width))
    weighted = ()
    for _ in tl.static_range(HEAD_DIM // width):
        weighted += (tl.zeros((BLOCK_GROUP, block_of(width)), tl.float32),)
    maximum = tl.full((BLOCK_GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_GROUP,), tl.float32)
    t = tl.arange(0, BLOCK)
    count = tl.load(count_ptr)
    blocks = tl.cdiv(tl.cdiv(count, splits), BLOCK)
    start = split * blocks * BLOCK
    end = tl.minimum(start + blocks * BLOCK, count)
    for block in range(start, end, BLOCK):
        first, inside = pair * slots + block, block + t < end
        visible = tl.load(positions_ptr + first + t, mask=inside, other=_FREE) > oldest
        logits = tl.zeros((BLOCK_GROUP, BLOCK), tl.float32)
        there = (k < key_words)[:, None] & inside[None, :]
        words, third = _words(
            keys_ptr, first, t[None, :], k[:, None], there, KEY_BITS, KEY_CHANNELS
        )
        for plane in tl.static_range(key_planes):
            key = words
            if KEY_BITS is not None:
                # Tokens of one group.
                pairs_ptr = key_grid_ptr + first // KEY_GROUP * KEY_CHANNELS + plane * key_words
                scale, zero = grid(pairs_ptr + k, k < key_words, KEY_BITS, half)
                key = from_codes(words, third, scale[:, None], zero[:, None], plane, KEY_BITS)
            logits = tl.dot(queries[plane], key.to(NUMBERS), logits, input_precision="ieee")
        logits = tl.where(visible[None, :], logits * (scaling * _LOG2_E), float("-inf"))
        values = ()
        for tile in tl.static_range(value_words // width):
            there = inside[:, None] & (v < width)[None, :]
            words, third = _words(
                values_ptr,
                first,
                t[:, None],
                tile * width + v[None, :],
                there,
                VALUE_BITS,
                HEAD_DIM,
            )
            for plane in tl.static_range(value_planes):
                value = words
                if VALUE_BITS is not None:
                    group = (plane * value_words + tile * width) // VALUE_GROUP
                    pairs_ptr = value_grid_ptr + first * groups + group
                    scale, zero = grid(pairs_ptr + t * groups, inside, VALUE_BITS, half)
                    value = from_codes(
                        words, third, scale[:, None], zero[:, None], plane, VALUE_BITS
                    )
                values += (value.to(NUMBERS),)
        maximum, total, weighted = joined(logits, values, maximum, total, weighted)
    tl.store(maxima_ptr, maximum, mask=grouped)
    tl.store(totals_ptr, total, mask=grouped)
    for tile in tl.static_range(value_words // width):
        for plane in tl.static_range(value_planes):
            places = weighted_ptr[:, None] + (plane * value_words + tile * width + v)[None, :]
            mask = grouped[:, None] & (v < width)[None, :]
            tl.store(places, weighted[tile * value_planes + plane], mask=mask)


@triton.jit
def _words(ptr, first, token, i, mask, BITS: tl.constexpr, CHANNELS: tl.constexpr):
    """Words of tokens from the first on, and others with their third bits.

    As `rounding.Codes` packs them; ``token`` and ``i`` broadcast.
    """
    # No early return: a compiler reads on behind it, with bits that are None.
    if BITS is None:
        words = tl.load(ptr + first * CHANNELS + token * CHANNELS + i, mask=mask, other=0.0)
        third = words
    else:
        row: tl.constexpr = CHANNELS * BITS // 8
        words_ptr = (ptr + first * row).to(tl.pointer_type(tl.int16))
        words = tl.load(words_ptr + token * (row // 2) + i, mask=mask, other=0)
        third = words
        if BITS == 3:
            third_words: tl.constexpr = CHANNELS // 16
            words_ptr += CHANNELS // 8
            third = tl.load(words_ptr + token * (row // 2) + i % third_words, mask=mask, other=0)
            third = third >> (i // third_words).to(tl.int16)
    return words, third


@triton.constexpr_function
def planes_of(bits):
    """Codes in a word."""
    return 1 if bits is None else 16 // {3: 2}.get(bits, bits)


@triton.constexpr_function
def block_of(words):
    """Columns of a tile of so many words, as many as a product takes."""
    return max(16, triton.next_power_of_2(words))
