# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""LoCoCo's mixtures in four Triton kernels: list, gather, convolve, mix.

The first lists what is folded of each head, the second lays it in a row. The third is a product of
matrices: what a convolution looks at from one place lies side by side, and from the next place it
is the same a row further on, so the rows of one matrix overlap. It is nearly all of the work; the
fourth takes the softmax and mixes, as attention does. Heads from which nothing leaves are passed
by.

A number of bfloat16 is exact in float16, but for one beyond 65504 or the last bits of one below
2^-14, and so are the weights, which are stored so: the products are those of float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from scope.kernels import processors, reference
from scope.kernels.tensors import FREE, Mixer

_FREE = tl.constexpr(FREE)
_LAST = tl.constexpr(2**63 - 1)
_BLOCK = 1024
# Slots that one program can sort; more are folded by torch.
_MOST_SORTED = 4096
_BLOCK_GATHERED = 32


def fold(
    keys: Tensor,
    values: Tensor,
    ranks: Tensor,
    worth: Tensor,
    leaving: Tensor,
    last: Tensor,
    most: int,
    mixer: Mixer,
) -> None:
    """Mix what leaves, and the least worthy, into the pivots; see `Backend`."""
    batch, heads, slots, head_dim = keys.shape
    most = min(most, slots)
    if most > _MOST_SORTED:
        reference.fold(keys, values, ranks, worth, leaving, last, most, mixer)
        return
    device, pairs = keys.device, batch * heads
    channels, width, taps = mixer.weight.shape
    rest = torch.full((pairs, most), FREE, dtype=torch.int32, device=device)
    pivots = torch.full((pairs, channels), FREE, dtype=torch.int32, device=device)
    _list[heads, batch](
        worth.contiguous(),
        ranks.contiguous(),
        leaving.contiguous(),
        last,
        torch.empty(pairs, slots, dtype=torch.int64, device=device),
        torch.empty(pairs, most, dtype=torch.int64, device=device),
        rest,
        pivots,
        slots,
        most,
        channels,
        BLOCK=_BLOCK,
        BLOCK_LISTED=max(2, triton.next_power_of_2(most)),
        num_warps=8,
    )
    # A head's entries have taps // 2 rows of 0 before them, those of the next one behind.
    reach = taps // 2
    pitch, rows = most + reach, pairs * (most + reach)
    dtype = torch.float32 if keys.dtype == torch.float32 else torch.float16
    states = torch.empty(rows, width, dtype=dtype, device=device)
    _gather[triton.cdiv(pitch, _BLOCK_GATHERED), heads, batch](
        keys,
        values,
        rest,
        states,
        *keys.stride()[:2],
        most,
        reach,
        HEAD_DIM=head_dim,
        BLOCK=_BLOCK_GATHERED,
    )
    answers = torch.empty(rows, channels, device=device)
    weight = torch.empty(channels, taps, width, dtype=dtype, device=device)
    weight.copy_(mixer.weight.transpose(1, 2))
    block_rows, block_channels, depth, options = _tiling(dtype, rows, channels, width, device)
    _convolve[triton.cdiv(rows, block_rows), triton.cdiv(channels, block_channels)](
        states,
        weight,
        mixer.bias,
        rest,
        answers,
        rows,
        most,
        pitch,
        channels,
        WIDTH=width,
        TAPS=taps,
        ROWS=block_rows,
        CHANNELS=block_channels,
        DEPTH=depth,
        **options,
    )
    mixed = 64 if dtype == torch.float16 else 16
    _mix[triton.cdiv(channels, mixed), heads, batch](
        keys,
        values,
        rest,
        pivots,
        states,
        answers,
        mixer.gate,
        *keys.stride()[:2],
        most,
        reach,
        channels,
        HEAD_DIM=head_dim,
        CHANNELS=mixed,
        BLOCK=mixed,
        num_warps=4,
        num_stages=2,
    )


def _tiling(
    dtype: torch.dtype, rows: int, channels: int, width: int, device: torch.device
) -> tuple[int, int, int, dict[str, int]]:
    """Rows and channels that a program convolves, numbers that it adds up at once, options."""
    if dtype == torch.float32:  # without tensor cores
        return 64, 64, 16, {"num_warps": 4, "num_stages": 2}
    if triton.cdiv(rows, 128) < processors(device):  # few heads: more programs
        return 64, 64, min(64, width), {"num_warps": 4, "num_stages": 4}
    most_channels = min(256, max(16, triton.next_power_of_2(channels)))
    return 128, most_channels, min(64, width), {"num_warps": 8, "num_stages": 3}


@triton.jit
def _list(
    worth_ptr,
    ranks_ptr,
    leaving_ptr,
    last_ptr,
    keys_ptr,
    listed_ptr,
    rest_ptr,
    pivots_ptr,
    slots,
    most,
    channels,
    BLOCK: tl.constexpr,
    BLOCK_LISTED: tl.constexpr,
):
    """The slots of one head that are folded, and the pivots among them, in the order of ranks.

    The slots of the lowest keys, of 63 bits, are folded; the last one's is found bit by bit.
    """
    row = tl.program_id(1)
    pair = (row * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    worth_ptr += pair * slots
    ranks_ptr += pair * slots
    leaving_ptr += pair * slots
    keys_ptr += pair * slots
    listed_ptr += pair * most
    last = tl.load(last_ptr + row)
    any_leaves = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, slots, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        inside = slot < slots
        rank = tl.load(ranks_ptr + slot, mask=inside, other=_FREE)
        bits = tl.load(worth_ptr + slot, mask=inside, other=0.0).to(tl.int32, bitcast=True)
        leaves = tl.load(leaving_ptr + slot, mask=inside, other=0) != 0
        ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2**31
        key = (ordered << 31) + (0x7FFFFFFF - rank)
        key = tl.where((rank != _FREE) & (rank <= last), key, _LAST)
        tl.store(keys_ptr + slot, tl.where(leaves, 0, key), mask=inside)
        any_leaves |= leaves.to(tl.int32)
    if tl.max(any_leaves) == 0:
        return
    tl.debug_barrier()  # what is read was written by other threads, here and below

    greatest = tl.zeros((), tl.int64)
    for bit in range(62, -1, -1):
        tried = greatest | (tl.full((), 1, tl.int64) << bit)
        fewer = tl.zeros((BLOCK,), tl.int32)
        for first in range(0, slots, BLOCK):
            slot = first + tl.arange(0, BLOCK)
            key = tl.load(keys_ptr + slot, mask=slot < slots, other=_LAST)
            fewer += (key < tried).to(tl.int32)
        greatest = tl.where(tl.sum(fewer) < most, tried, greatest)

    count = 0
    for first in range(0, slots, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        key = tl.load(keys_ptr + slot, mask=slot < slots, other=_LAST)
        is_listed = (key <= greatest) & (key < _LAST)
        rank = tl.load(ranks_ptr + slot, mask=is_listed, other=0).to(tl.int64)
        place = count + tl.cumsum(is_listed.to(tl.int32), axis=0) - 1
        tl.store(listed_ptr + place, (rank << 32) | slot, mask=is_listed)
        count += tl.sum(is_listed.to(tl.int32))
    tl.debug_barrier()

    place = tl.arange(0, BLOCK_LISTED)
    is_listed = place < count
    slot = tl.sort(tl.load(listed_ptr + place, mask=is_listed, other=_LAST)).to(tl.int32)
    tl.store(rest_ptr + pair * most + place, slot, mask=is_listed)
    stays = is_listed & (tl.load(leaving_ptr + slot, mask=is_listed, other=1) == 0)
    channel = tl.cumsum(stays.to(tl.int32), axis=0) - 1
    tl.store(pivots_ptr + pair * channels + channel, slot, mask=stays & (channel < channels))


@triton.jit
def _gather(
    keys_ptr,
    values_ptr,
    rest_ptr,
    states_ptr,
    row_stride,
    head_stride,
    most,
    reach,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of one head's entries, each key with its value behind it."""
    pair = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    offset = tl.program_id(2).to(tl.int64) * row_stride + tl.program_id(1) * head_stride
    rest_ptr += pair * most
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = row - reach
    slot = tl.load(rest_ptr + place, mask=(place >= 0) & (place < most), other=_FREE)
    # The head before looks at the rows of 0 in any case.
    wanted = (row < tl.where(tl.load(rest_ptr) == _FREE, reach, most + reach))[:, None]
    there = (slot != _FREE)[:, None]
    d = tl.arange(0, HEAD_DIM)[None, :]
    source = offset + slot[:, None] * HEAD_DIM + d
    target = states_ptr + (pair * (most + reach) + row)[:, None] * (2 * HEAD_DIM) + d
    key = tl.load(keys_ptr + source, mask=there, other=0.0).to(tl.float32)
    value = tl.load(values_ptr + source, mask=there, other=0.0).to(tl.float32)
    tl.store(target, key, mask=wanted)
    tl.store(target + HEAD_DIM, value, mask=wanted)


@triton.jit
def _convolve(
    states_ptr,
    weight_ptr,
    bias_ptr,
    rest_ptr,
    answers_ptr,
    rows,
    most,
    pitch,
    channels,
    WIDTH: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """What some channels answer to windows that begin in a block of rows, of any heads."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first_listed = tl.load(rest_ptr + row // pitch * most, mask=row < rows, other=_FREE)
    if tl.max(first_listed) == _FREE:
        return
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    depth = tl.arange(0, DEPTH)
    sums = tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(0, TAPS * WIDTH, DEPTH):
        states = tl.load(
            states_ptr + row[:, None] * WIDTH + (first + depth)[None, :],
            mask=(row + first // WIDTH < rows)[:, None],
            other=0.0,
        )
        weight = tl.load(
            weight_ptr + channel[None, :] * (TAPS * WIDTH) + (first + depth)[:, None],
            mask=(channel < channels)[None, :],
            other=0.0,
        )
        sums = tl.dot(states, weight, sums, input_precision="ieee")
    bias = tl.load(bias_ptr + channel, mask=channel < channels, other=0.0)
    tl.store(
        answers_ptr + row[:, None] * channels + channel[None, :],
        tl.maximum(sums + bias[None, :], 0.0),
        mask=(row < rows)[:, None] & (channel < channels)[None, :],
    )


@triton.jit
def _mix(
    keys_ptr,
    values_ptr,
    rest_ptr,
    pivots_ptr,
    states_ptr,
    answers_ptr,
    gate_ptr,
    row_stride,
    head_stride,
    most,
    reach,
    channels,
    HEAD_DIM: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The mixtures that some channels make of one head's entries go where their pivots are."""
    pair = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    offset = tl.program_id(2).to(tl.int64) * row_stride + tl.program_id(1) * head_stride
    rest_ptr += pair * most
    if tl.load(rest_ptr) == _FREE:
        return
    answers_ptr += pair * (most + reach) * channels
    states_ptr += (pair * (most + reach) + reach) * (2 * HEAD_DIM)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    d = tl.arange(0, HEAD_DIM)
    maximum = tl.zeros((CHANNELS,), tl.float32)  # no answer is below 0
    total = tl.zeros((CHANNELS,), tl.float32)
    key = tl.zeros((CHANNELS, HEAD_DIM), tl.float32)
    value = tl.zeros((CHANNELS, HEAD_DIM), tl.float32)
    for first in range(0, most, BLOCK):
        place = first + tl.arange(0, BLOCK)
        there = tl.load(rest_ptr + place, mask=place < most, other=_FREE) != _FREE
        answer = tl.load(
            answers_ptr + place[None, :] * channels + channel[:, None],
            mask=inside[:, None] & there[None, :],
            other=0.0,
        )
        states = states_ptr + place[:, None] * (2 * HEAD_DIM) + d[None, :]
        keys = tl.load(states, mask=there[:, None], other=0.0)
        values = tl.load(states + HEAD_DIM, mask=there[:, None], other=0.0)
        highest = tl.maximum(maximum, tl.max(answer, axis=1))
        shares = tl.where(there[None, :], tl.exp(answer - highest[:, None]), 0.0)
        faded = tl.exp(maximum - highest)
        total = total * faded + tl.sum(shares, axis=1)
        shares = shares.to(keys.dtype)
        key = tl.dot(shares, keys, key * faded[:, None], input_precision="ieee")
        value = tl.dot(shares, values, value * faded[:, None], input_precision="ieee")
        maximum = highest

    slot = tl.load(pivots_ptr + pair * channels + channel, mask=inside, other=_FREE)
    is_pivot = (slot != _FREE)[:, None]
    place = offset + slot[:, None] * HEAD_DIM + d[None, :]
    gate = tl.load(gate_ptr)
    own = tl.load(keys_ptr + place, mask=is_pivot, other=0.0).to(tl.float32)
    tl.store(keys_ptr + place, own + gate * (key / total[:, None] - own), mask=is_pivot)
    own = tl.load(values_ptr + place, mask=is_pivot, other=0.0).to(tl.float32)
    tl.store(values_ptr + place, own + gate * (value / total[:, None] - own), mask=is_pivot)
