# ruff: noqa: ANN201, ANN202  (what a kernel returns, Triton knows)
"""What a block of slots competes by, and the states that this depends on."""

import triton
import triton.language as tl

from scope.kernels.tensors import FREE
from scope.kernels.triton.chance import mixed

_FREE = tl.constexpr(FREE)


@triton.jit
def worth_of(
    received, slot, rank, inside, old, position, chance, least_large, new_norm,
    total_ptr, norm_ptr, range_ptr, last_ptr, pause_ptr, decay, threshold, JOB: tl.constexpr,
):  # fmt: skip
    """What a block of slots competes by, none of it negative; their states are brought up to date.

    Slots that are not old begin, whatever they have held before.
    """
    if JOB == "recurrence":
        now = position.to(tl.float32)
        last = tl.where(old, tl.load(last_ptr + slot, mask=old, other=0.0), now)
        attended = received > threshold
        worth = tl.where(attended, now, last)
        tl.store(last_ptr + slot, worth, mask=inside)
        if pause_ptr is not None:
            gap = tl.load(pause_ptr + slot, mask=old, other=0.0)
            gap = tl.where(attended, tl.maximum(gap, now - last), gap)
            tl.store(pause_ptr + slot, gap, mask=inside)
            gap = tl.maximum(gap, 1.0)
            worth = 2 / (1 + tl.exp((now - worth) / gap)) + 2 / (1 + tl.exp(1 / gap))
        return worth
    worth = received
    if norm_ptr is not None:
        worth *= tl.where(old, tl.load(norm_ptr + slot, mask=old, other=0.0), new_norm)
    if total_ptr is not None:
        sofar = decay * tl.load(total_ptr + slot, mask=old, other=0.0)
        worth = tl.maximum(sofar, worth) if JOB == "peak" else sofar + worth
        tl.store(total_ptr + slot, worth, mask=inside)
    if JOB == "value range":
        spread = tl.load(range_ptr + slot, mask=inside, other=0.0)
        uniform = (drawn(rank, chance).to(tl.float32) + 0.5) * 2.0**-24
        is_large = spread.to(tl.int32, bitcast=True) >= least_large
        worth = tl.where(is_large, spread * 2.0**100, worth / -tl.log(uniform))
    return worth


@triton.jit
def received_by(
    logits_ptr, slots, slot, inside, maximum, total, g,
    GROUP: tl.constexpr, MEAN: tl.constexpr, SCORE_DTYPE: tl.constexpr,
):  # fmt: skip
    """Attention that a block of slots receives, reduced over the query group."""
    mask = (g < GROUP)[:, None] & inside[None, :]
    places = g[:, None] * slots + slot[None, :]
    logits = tl.load(logits_ptr + places, mask=mask, other=float("-inf"))
    probabilities = tl.exp2(logits - maximum[:, None]) / total[:, None]
    probabilities = probabilities.to(SCORE_DTYPE).to(tl.float32)
    if MEAN:
        return (tl.sum(probabilities, axis=0) / GROUP).to(SCORE_DTYPE).to(tl.float32)
    return tl.max(probabilities, axis=0)


@triton.jit
def least_large_of(
    range_ptr, ranks_ptr, start, end, protected, last_to_go, large, BLOCK: tl.constexpr
):
    """Bits of the least range among the large, so many as are their share of those that may go.

    Found bit by bit: there is no room to sort, and nothing depends on how the slots lie.
    """
    may_go = _reaching(range_ptr, ranks_ptr, start, end, protected, last_to_go, 0, BLOCK)
    wanted = (large * may_go.to(tl.float32)).to(tl.int32)
    least = wanted * 0
    for bit in range(30, -1, -1):
        tried = least | (1 << bit)
        reaching = _reaching(range_ptr, ranks_ptr, start, end, protected, last_to_go, tried, BLOCK)
        least = tl.where(reaching >= wanted, tried, least)
    return least


@triton.jit
def _reaching(range_ptr, ranks_ptr, start, end, protected, last_to_go, bits, BLOCK: tl.constexpr):
    """How many of those that may go have a range of at least these bits."""
    reaching = tl.full((BLOCK,), 0, tl.int32)
    for first in range(start, end, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        rank = tl.load(ranks_ptr + slot, mask=slot < end, other=_FREE)
        own = tl.load(range_ptr + slot, mask=slot < end, other=0.0).to(tl.int32, bitcast=True)
        reaching += ((rank >= protected) & (rank <= last_to_go) & (own >= bits)).to(tl.int32)
    return tl.sum(reaching)


@triton.jit
def drawn(rank, chance):
    """24 bits, of which the same rank and chance draw the same."""
    return mixed(mixed(rank) + chance) >> 8
