# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""The second kernel of decode attention: splits are joined, and beside that slots are freed."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from scope.kernels.tensors import FREE, Ranking, Received, SlotTensors, StepCounts
from scope.kernels.triton.eviction import FIRST, LAST, freed, lower
from scope.kernels.triton.plan import Plan
from scope.kernels.triton.spans import span, span_pointers
from scope.kernels.triton.worth import drawn, least_large_of, received_by, worth_of

TRITON_DTYPE = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
# Kernels that may need what a token is worth more than once.
OF_ATTENTION = ("current", "cumulative", "peak", "value range", "recurrence")
# Numbers of the splits that one program joins at once.
_HELD_TOGETHER = 2**12
_FREE = tl.constexpr(FREE)


@dataclass(frozen=True)
class Splits:
    """What the first kernel leaves to the second.

    Attributes:
        logits: ``[B, H, group, S]`` float32 in base 2, or of no slots.
        weighted: ``[B, H, splits, group, D]`` float32 values, not normalised.
        maxima, totals: ``[B, H, splits, group]`` float32.
        plan: how the GPU is shared out.
    """

    logits: Tensor
    weighted: Tensor
    maxima: Tensor
    totals: Tensor
    plan: Plan


def finish(
    split: Splits,
    slots: SlotTensors,
    counts: StepCounts,
    output: Tensor,
    job: Ranking | Received | None,
    worths: Tensor | None = None,
    joins: bool = True,
) -> None:
    """Join the splits, and beside that evict by a ranking, or say in ``worths`` what is received.

    Where several tokens leave at once, their worths wait there for their turns. Where no token has
    joined, the slots are left alone.
    """
    batch, heads, length, head_dim = slots.shape
    group = output.shape[1] // heads
    ranking = job if isinstance(job, Ranking) else None
    received = ranking.received if ranking else job or Received()
    kernel = ranking.kernel if ranking else None if job is None else "report"
    state, constants = (ranking.state, ranking.constants) if ranking else ({}, {})
    if kernel in OF_ATTENTION:
        worths = torch.empty(slots.shape[:3], dtype=torch.float32, device=output.device)
    together = _joined_together(split.plan.splits, group, head_dim)
    joining = triton.cdiv(group, together)
    _finish[heads, batch, joining + 1 if joins else joining](
        split.logits,
        split.weighted,
        split.maxima,
        split.totals,
        output,
        slots.positions,
        slots.ranks,
        slots.values,
        worths,
        state.get("total"),
        state.get("norm"),
        state.get("range"),
        state.get("last"),
        state.get("gap"),
        ranking.draw if ranking else None,
        slots.vacant,
        *span_pointers(slots),
        counts.newest,
        counts.protected,
        counts.losses,
        counts.position,
        length,
        split.plan.splits,
        ranking.layer if ranking else 0,
        ranking.recent if ranking else 1,
        constants.get("decay", 1.0),
        constants.get("attended_above", 0.0),
        constants.get("large", 0.0),
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_GROUP=triton.next_power_of_2(group),
        TOGETHER=together,
        BLOCK_SPLITS=triton.next_power_of_2(split.plan.splits),
        BLOCK=256 * split.plan.finishing_warps,
        JOINS=joins,
        JOB=kernel,
        SPANS=slots.spans is not None,
        MEAN=received.reduction == "mean",
        SCORE_DTYPE=TRITON_DTYPE[received.dtype],
        num_warps=split.plan.finishing_warps,
    )


def _joined_together(splits: int, group: int, head_dim: int) -> int:
    """Query heads whose splits one program joins: no more than its registers hold."""
    held = triton.next_power_of_2(splits) * head_dim
    return min(triton.next_power_of_2(group), max(1, _HELD_TOGETHER // held))


@triton.jit(do_not_specialize=["layer"])
def _finish(
    logits_ptr,
    weighted_ptr,
    maxima_ptr,
    totals_ptr,
    output_ptr,
    positions_ptr,
    ranks_ptr,
    values_ptr,
    worths_ptr,
    total_ptr,
    norm_ptr,
    range_ptr,
    last_ptr,
    pause_ptr,
    draw_ptr,
    vacant_ptr,
    start_ptr,
    room_ptr,
    gap_ptr,
    newest_ptr,
    protected_ptr,
    losses_ptr,
    position_ptr,
    slots,
    splits,
    layer,
    recent,
    decay,
    threshold,
    large,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    JOINS: tl.constexpr,
    JOB: tl.constexpr,
    SPANS: tl.constexpr,
    MEAN: tl.constexpr,
    SCORE_DTYPE: tl.constexpr,
):
    """Join the splits of some query heads; beside that, the first program looks after the slots.

    JOB names what slots are freed by; ``report`` writes to ``worths`` what attention each slot
    received and frees none.
    """
    head, row = tl.program_id(0), tl.program_id(1)
    pair = (row * tl.num_programs(0) + head).to(tl.int64)
    first_part = pair * splits * GROUP  # of all splits' query heads
    joiner = tl.program_id(2)
    if JOINS:
        joiner -= 1
    if joiner >= 0:
        g = joiner * TOGETHER + tl.arange(0, TOGETHER)
        _, shares, total = _sums(
            maxima_ptr + first_part, totals_ptr + first_part, g, splits, GROUP, BLOCK_SPLITS, JOINS
        )
        d = tl.arange(0, HEAD_DIM)
        split = tl.arange(0, BLOCK_SPLITS)[:, None]
        exists = (split < splits) & (g < GROUP)[None, :]
        places = (first_part + split * GROUP + g[None, :])[:, :, None] * HEAD_DIM + d[None, None, :]
        weighted = tl.load(weighted_ptr + places, mask=exists[:, :, None], other=0.0)
        output = tl.sum(weighted * shares[:, :, None], axis=0) / total[:, None]
        places = (pair * GROUP + g[:, None]) * HEAD_DIM + d[None, :]
        output = output.to(output_ptr.dtype.element_ty)
        tl.store(output_ptr + places, output, mask=(g < GROUP)[:, None])
        return

    g = tl.arange(0, BLOCK_GROUP)
    maximum, _, total = _sums(
        maxima_ptr + first_part, totals_ptr + first_part, g, splits, GROUP, BLOCK_SPLITS, JOINS
    )
    first_slot, room, gap = span(start_ptr, room_ptr, gap_ptr, pair, slots, SPANS)
    positions_ptr += first_slot
    ranks_ptr += first_slot
    logits_ptr += pair * GROUP * slots
    newest = tl.load(newest_ptr + row)
    new_slot = tl.load(vacant_ptr + pair)
    position = tl.load(position_ptr + row)
    tl.store(positions_ptr + new_slot, position)
    tl.store(ranks_ptr + new_slot, newest)
    if worths_ptr is not None:
        worths_ptr += pair * slots
    if JOB == "report":
        for first in range(0, slots, BLOCK):
            slot = first + tl.arange(0, BLOCK)
            # Other slots from the newest rank on were never taken, and have no logits.
            inside = ((slot < newest - gap) & (slot < room)) | (slot == new_slot)
            received = received_by(
                logits_ptr, slots, slot, inside, maximum, total, g, GROUP, MEAN, SCORE_DTYPE
            )
            tl.store(worths_ptr + slot, received, mask=slot < slots)
    else:
        vacant = newest + 1 - gap
        if JOB is not None:
            if total_ptr is not None:
                total_ptr += first_slot
            if last_ptr is not None:
                last_ptr += first_slot
            if pause_ptr is not None:
                pause_ptr += first_slot
            # What is written once, with the token.
            new_norm = 0.0
            if norm_ptr is not None or range_ptr is not None:
                d = tl.arange(0, HEAD_DIM)
                value = tl.load(values_ptr + (first_slot + new_slot) * HEAD_DIM + d)
                value = value.to(tl.float32)
            if norm_ptr is not None:
                norm_ptr += first_slot
                new_norm = tl.sum(tl.abs(value))
                tl.store(norm_ptr + new_slot, new_norm)
            if range_ptr is not None:
                range_ptr += first_slot
                tl.store(range_ptr + new_slot, tl.max(value) - tl.min(value))
            chance = 0
            if JOB == "random" or JOB == "fresh random" or JOB == "value range":
                chance = tl.load(draw_ptr + row) + 1_000_003 * head
                chance += 1_000_000_007 * tl.cast(layer, tl.int64)
            if JOB == "fresh random":
                chance += 1_000_000_021 * tl.cast(newest, tl.int64)
            protected = tl.load(protected_ptr + row)
            losses = tl.load(losses_ptr + row)
            # A protected token's slot is its rank, and no slot beyond the newest rank was ever
            # taken.
            start = tl.maximum(tl.minimum(protected, newest) - gap, 0)
            end = tl.minimum(newest + 1 - gap, room)
            last_to_go = newest - recent
            least_large = losses * 0
            if JOB == "value range":  # noqa: SIM102  (known when compiling)
                if losses > 0:
                    least_large = least_large_of(
                        range_ptr, ranks_ptr, start, end, protected, last_to_go, large, BLOCK
                    )
            # Losers leave in order, so whoever comes after the last one is still there. The first
            # round also looks for a free slot and adds to the scores. Each lane keeps the best of
            # its slots; they are compared once a round.
            last_key, last_slot = FIRST, -1
            for loss in range(tl.maximum(losses, 1)):
                least = tl.full((BLOCK,), LAST, tl.int64)
                loser = tl.full((BLOCK,), 0, tl.int32) + slots
                free = loser
                for first in range(start, end, BLOCK):
                    slot = first + tl.arange(0, BLOCK)
                    inside = slot < end
                    is_new = slot == new_slot
                    rank = tl.load(ranks_ptr + slot, mask=inside, other=_FREE).to(tl.int64)
                    is_free = inside & (rank == _FREE) & ~is_new
                    free = tl.where(is_free, tl.minimum(free, slot), free)
                    if JOB == "recent":
                        key = rank
                    elif JOB == "random" or JOB == "fresh random":
                        key = (drawn(rank, chance) << 32) - rank
                    else:
                        if loss == 0:
                            worth = received_by(
                                logits_ptr, slots, slot, inside, maximum, total, g,
                                GROUP, MEAN, SCORE_DTYPE,
                            )  # fmt: skip
                            worth = worth_of(
                                worth, slot, rank, inside, inside & ~is_new, position, chance,
                                least_large, new_norm, total_ptr, norm_ptr, range_ptr, last_ptr,
                                pause_ptr, decay, threshold, JOB,
                            )  # fmt: skip
                            if losses > 1:
                                tl.store(worths_ptr + slot, worth, mask=inside)
                        else:
                            worth = tl.load(worths_ptr + slot, mask=inside, other=0.0)
                        key = (worth.to(tl.int32, bitcast=True).to(tl.int64) << 32) - rank
                    may_go = (rank >= protected) & (rank <= last_to_go) & ~is_new
                    may_go &= losses > 0
                    least, loser = lower(key, slot, may_go, last_key, last_slot, least, loser)
                if worths_ptr is not None:
                    tl.debug_barrier()  # the next round reads the worths
                last_key, last_slot = freed(positions_ptr, ranks_ptr, least, loser, slots)
                vacant = tl.minimum(vacant, tl.minimum(tl.min(free), last_slot))
        # An idle row counts from 0, below its gap.
        tl.store(vacant_ptr + pair, tl.maximum(tl.minimum(vacant, room - 1), 0))


@triton.jit
def _sums(
    maxima_ptr,
    totals_ptr,
    g,
    splits,
    GROUP: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    JOINS: tl.constexpr,
):
    """Of some query heads over all splits: maximum, each split's share of the total, and total."""
    split = tl.arange(0, BLOCK_SPLITS)[:, None]
    parts = split * GROUP + g[None, :]
    exists = (split < splits) & (g < GROUP)[None, :]
    maxima = tl.load(maxima_ptr + parts, mask=exists, other=float("-inf"))
    totals = tl.load(totals_ptr + parts, mask=exists, other=0.0)
    maximum = tl.where(g < GROUP, tl.max(maxima, axis=0), 0.0)
    if not JOINS:  # a row without a prompt may see nothing
        maximum = tl.where(maximum == float("-inf"), 0.0, maximum)
    shares = tl.exp2(maxima - maximum[None, :])
    total = tl.where(g < GROUP, tl.sum(totals * shares, axis=0), 1.0)
    if not JOINS:
        total = tl.where(total == 0.0, 1.0, total)
    return maximum, shares, total
