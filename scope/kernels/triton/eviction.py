# ruff: noqa: ANN201, ANN202  (what a kernel returns, Triton knows)
"""Freeing slots by a worth that somebody has made of them."""

import triton
import triton.language as tl
from torch import Tensor

from scope.kernels.tensors import FREE, SlotTensors, StepCounts
from scope.kernels.triton.plan import plan_of
from scope.kernels.triton.spans import span, span_pointers

_FREE = tl.constexpr(FREE)
FIRST = tl.constexpr(-(2**63))
LAST = tl.constexpr(2**63 - 1)


def evict(slots: SlotTensors, counts: StepCounts, worth: Tensor | None, recent: int) -> None:
    """Free the slots of the least worthy tokens, and choose the next vacant one; see `Backend`."""
    batch, heads, length, _ = slots.shape
    warps = plan_of(slots, group=1, length=length).finishing_warps
    if worth is not None and worth.stride(2) != 1:
        worth = worth.contiguous()
    _evict[heads, batch](
        worth,
        slots.positions,
        slots.ranks,
        slots.vacant,
        *span_pointers(slots),
        counts.newest,
        counts.protected,
        counts.losses,
        *((0, 0) if worth is None else worth.stride()[:2]),
        length,
        recent,
        SPANS=slots.spans is not None,
        GIVEN=worth is not None,
        BLOCK=256 * warps,
        num_warps=warps,
    )


@triton.jit
def _evict(
    worth_ptr,
    positions_ptr,
    ranks_ptr,
    vacant_ptr,
    start_ptr,
    room_ptr,
    gap_ptr,
    newest_ptr,
    protected_ptr,
    losses_ptr,
    worth_row_stride,
    worth_head_stride,
    slots,
    recent,
    SPANS: tl.constexpr,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Free the slots of one head's least worthy tokens; the new token has its slot already."""
    row = tl.program_id(1)
    pair = (row * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    first_slot, room, gap = span(start_ptr, room_ptr, gap_ptr, pair, slots, SPANS)
    positions_ptr += first_slot
    ranks_ptr += first_slot
    newest = tl.load(newest_ptr + row)
    vacant = newest + 1 - gap
    if GIVEN:
        worth_ptr += row * worth_row_stride + tl.program_id(0) * worth_head_stride
        protected = tl.load(protected_ptr + row)
        losses = tl.load(losses_ptr + row)
        start = tl.maximum(tl.minimum(protected, newest) - gap, 0)
        end = tl.minimum(newest + 1 - gap, room)
        last_key, last_slot = FIRST, -1
        for _ in range(tl.maximum(losses, 1)):
            least = tl.full((BLOCK,), LAST, tl.int64)
            loser = tl.full((BLOCK,), 0, tl.int32) + slots
            free = loser
            for first in range(start, end, BLOCK):
                slot = first + tl.arange(0, BLOCK)
                inside = slot < end
                rank = tl.load(ranks_ptr + slot, mask=inside, other=_FREE).to(tl.int64)
                free = tl.where(inside & (rank == _FREE), tl.minimum(free, slot), free)
                worth = tl.load(worth_ptr + slot, mask=inside, other=0.0)
                key = _ordered(worth, rank)
                may_go = (rank >= protected) & (rank <= newest - recent) & (losses > 0)
                least, loser = lower(key, slot, may_go, last_key, last_slot, least, loser)
            last_key, last_slot = freed(positions_ptr, ranks_ptr, least, loser, slots)
            vacant = tl.minimum(vacant, tl.minimum(tl.min(free), last_slot))
    tl.store(vacant_ptr + pair, tl.maximum(tl.minimum(vacant, room - 1), 0))


@triton.jit
def lower(key, slot, may_go, last_key, last_slot, least, loser):
    """Each lane's lowest key so far of those that may go and come after the last, and its slot."""
    may_go &= (key > last_key) | ((key == last_key) & (slot > last_slot))
    lower = may_go & (key < least)
    return tl.where(lower, key, least), tl.where(lower, slot, loser)


@triton.jit
def freed(positions_ptr, ranks_ptr, least, loser, slots):
    """Free the slot of the lowest of all lanes: its key, and where it is, ``slots`` for none."""
    lowest = tl.min(least)
    leaves = tl.min(tl.where(least == lowest, loser, slots))
    tl.store(positions_ptr + leaves, _FREE, mask=leaves < slots)
    tl.store(ranks_ptr + leaves, _FREE, mask=leaves < slots)
    return lowest, leaves


@triton.jit
def _ordered(worth, rank):
    """Keys as in the reference; the bits of floats that are not negative need no turning."""
    bits = worth.to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits.to(tl.int64) << 32) - rank
