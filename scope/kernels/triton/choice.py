# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""Choosing what is read next, in one launch, and bringing it from host memory in another."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from scope.kernels import reference
from scope.kernels.tensors import FREE, Listed

_BLOCK = 4096
# Names that one program can sort; more are sorted by torch.
_MOST_NAMES = 4096
_BLOCK_BROUGHT = 32
_FREE = tl.constexpr(FREE)
_FIRST = tl.constexpr(-1)
# The key of -inf, which stands for no token.
_NOTHING = tl.constexpr(0x7FFFFF)


def choose(listed: Listed, full: Tensor, worth: Tensor, newest: Tensor) -> None:
    """List anew what full rows attend to; see `Backend`."""
    batch, heads, names = listed.slots.shape
    if names > _MOST_NAMES:
        reference.choose(listed, full, worth, newest)
        return
    chosen = torch.empty(batch, heads, names, dtype=torch.int64, device=worth.device)
    _choose[heads, batch](
        worth.contiguous(),
        listed.slots,
        listed.since,
        full,
        newest,
        chosen,
        worth.shape[-1],
        names,
        BLOCK=_BLOCK,
        BLOCK_NAMES=max(2, triton.next_power_of_2(names)),
        num_warps=16,
    )


def bring(listed: Listed, full: Tensor, keys: Tensor, values: Tensor) -> None:
    """Copy what full rows list; see `Backend`. Pinned memory is read where it is."""
    batch, heads, names = listed.slots.shape
    _bring[triton.cdiv(names, _BLOCK_BROUGHT), heads, batch](
        listed.slots,
        full,
        keys,
        values,
        listed.keys,
        listed.values,
        names,
        keys.stride(1),
        HEAD_DIM=keys.shape[-1],
        BLOCK=_BLOCK_BROUGHT,
    )


@triton.jit
def _bring(
    names_ptr, full_ptr, keys_ptr, values_ptr, near_keys_ptr, near_values_ptr, names, stride,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of one head's list, if its row is full."""
    head, row = tl.program_id(1), tl.program_id(2)
    if tl.load(full_ptr + row) == 0:
        return
    pair = (row * tl.num_programs(1) + head).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(names_ptr + pair * names + place, mask=place < names, other=_FREE)
    d = tl.arange(0, HEAD_DIM)[None, :]
    far = pair * stride + slot.to(tl.int64)[:, None] * HEAD_DIM + d
    near = (pair * names + place)[:, None] * HEAD_DIM + d
    there = (slot != _FREE)[:, None]
    tl.store(near_keys_ptr + near, tl.load(keys_ptr + far, mask=there), mask=there)
    tl.store(near_values_ptr + near, tl.load(values_ptr + far, mask=there), mask=there)


@triton.jit
def _choose(
    worth_ptr,
    names_ptr,
    since_ptr,
    full_ptr,
    newest_ptr,
    chosen_ptr,
    slots,
    names,
    BLOCK: tl.constexpr,
    BLOCK_NAMES: tl.constexpr,
):
    """One head's list, if its row is full.

    The worth of the last one to be chosen is found digit by digit, counting how many share the
    digits so far. What is worth more, and of its equals as many of the first as are wanted, then
    lie side by side, and are sorted.
    """
    head, row = tl.program_id(0), tl.program_id(1)
    if tl.load(full_ptr + row) == 0:
        return
    pair = (row * tl.num_programs(0) + head).to(tl.int64)
    worth_ptr += pair * slots
    names_ptr += pair * names
    chosen_ptr += pair * names
    newest = tl.load(newest_ptr + row)
    if head == 0:
        tl.store(since_ptr + row, newest)
    end = tl.minimum(newest + 1, slots)

    # Its digits, of 8 bits, from the first on, and how many of its equals are chosen.
    least, wanted = tl.zeros((), tl.int64), names
    digits = tl.arange(0, 256)
    for shift in tl.static_range(24, -8, -8):
        counts = tl.zeros((256,), tl.int32)
        for first in range(0, end, BLOCK):
            key = _keys(worth_ptr, first + tl.arange(0, BLOCK), end)
            # Whoever is out already is counted with 0, whose number nobody asks for.
            own = tl.where((key >> shift) >> 8 == least, (key >> shift) & 255, 0)
            counts += tl.histogram(own.to(tl.int32), 256)
        reaching = tl.cumsum(counts, axis=0, reverse=True)
        digit = tl.sum(((reaching >= wanted) & (digits > 0)).to(tl.int32))
        wanted -= tl.sum(tl.where(digits > digit, counts, 0))
        least = (least << 8) + digit

    found, equals = 0, 0
    for first in range(0, end, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        key = _keys(worth_ptr, slot, end)
        is_equal = (key == least).to(tl.int32)
        is_wanted = (is_equal == 1) & (equals + tl.cumsum(is_equal, axis=0) <= wanted)
        is_chosen = (key > _NOTHING) & ((key > least) | is_wanted)
        place = found + tl.cumsum(is_chosen.to(tl.int32), axis=0) - 1
        tl.store(chosen_ptr + place, (key << 31) - slot, mask=is_chosen)
        found += tl.sum(is_chosen.to(tl.int32))
        equals += tl.sum(is_equal)
    tl.debug_barrier()  # what is sorted was written by other threads

    place = tl.arange(0, BLOCK_NAMES)
    key = tl.sort(tl.load(chosen_ptr + place, mask=place < found, other=_FIRST))
    name = tl.where(key == _FIRST, _FREE, (-key & 0x7FFFFFFF).to(tl.int32))
    place -= BLOCK_NAMES - names
    tl.store(names_ptr + place, name, mask=place >= 0)


@triton.jit
def _keys(worth_ptr, slot, end):
    """Numbers of 32 bits in the order of the worths; beyond the end there is no token."""
    worth = tl.load(worth_ptr + slot, mask=slot < end, other=float("-inf"))
    bits = worth.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2**31
