# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""Decode attention over slots in two Triton kernels: attend, then combine and evict.

The first splits the slots of each head over programs and reads every key and value once. The second
joins the splits, and frees the slots of the tokens that must go. Between them only the logits of
tokens that may go are written. Nothing waits for the host: what is due comes as tensors of counts.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from scope.cache.layer import FREE, Ranking, SlotLayer
from scope.kernels import processors, shared_memory

_MOST_SPLITS = 32
# Numbers that a program of the second kernel can hold of its head's splits.
_HELD_TOGETHER = 2**14
# Shared memory of a program beside its blocks.
_OTHER_MEMORY = 2**11
_TRITON_DTYPE = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
_LOG2_E = tl.constexpr(1.4426950408889634)
_FREE = tl.constexpr(FREE)
_FIRST = tl.constexpr(-(2**63))
_LAST = tl.constexpr(2**63 - 1)


def fused_attention(
    layer: SlotLayer,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    scaling: float,
    sliding_window: int | None,
    ranking: Ranking,
    rotation: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Append one token per row, attend to all that is held, then evict what must go.

    Takes and returns what `slot_attention` does. Rows of the queries, keys and values may be
    strided, heads may not. With ``rotation``, ``[B, D]`` cos and sin, queries and keys come without
    RoPE.
    """
    batch, heads, slots, head_dim = layer.keys.shape
    group = queries.shape[1] // heads
    block_group = triton.next_power_of_2(group)
    plan = _plan(layer.keys, block_group)
    splits = plan.splits
    wide = {"dtype": torch.float32, "device": queries.device}
    logits = torch.empty(batch, heads, group, slots if ranking.score else 0, **wide)
    weighted = torch.empty(batch, heads, splits, group, head_dim, **wide)
    maxima = torch.empty(batch, heads, splits, group, **wide)
    totals = torch.empty_like(maxima)
    output = torch.empty(batch, heads * group, head_dim, dtype=queries.dtype, device=queries.device)
    cos, sin = rotation or (None, None)
    _attend[splits, heads, batch](
        queries,
        keys,
        values,
        cos,
        sin,
        layer.keys,
        layer.values,
        layer.positions,
        layer.vacant,
        layer.newest,
        layer.protected,
        positions,
        logits,
        weighted,
        maxima,
        totals,
        queries.stride(0),
        keys.stride(0),
        values.stride(0),
        slots,
        scaling,
        WINDOW=sliding_window or 0,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_GROUP=max(16, block_group),
        BLOCK=plan.block,
        SCORED=ranking.score is not None,
        ROTATE=rotation is not None,
        num_warps=plan.warps,
        num_stages=plan.stages,
    )
    _finish[heads, batch, 2](
        logits,
        weighted,
        maxima,
        totals,
        output,
        layer.positions,
        layer.ranks,
        layer.scores,
        layer.vacant,
        layer.newest,
        layer.protected,
        layer.losses,
        positions,
        slots,
        splits,
        layer.index,
        ranking.recent,
        GROUP=group,
        BLOCK_GROUP=block_group,
        HEAD_DIM=head_dim,
        BLOCK_SPLITS=triton.next_power_of_2(splits),
        BLOCK=256 * plan.finishing_warps,
        SCORE=ranking.score,
        MEAN=ranking.reduction == "mean",
        SCORE_DTYPE=_TRITON_DTYPE[ranking.dtype],
        num_warps=plan.finishing_warps,
    )
    return output


@dataclass(frozen=True)
class _Plan:
    """How the GPU is shared out.

    Attributes:
        splits: of the slots of each head, with a program each.
        block: slots that a program reads at once.
        stages: blocks on their way at the same time.
        warps: of these programs.
        finishing_warps: of the second kernel's programs.
    """

    splits: int
    block: int
    stages: int
    warps: int
    finishing_warps: int


def _plan(slots: Tensor, block_group: int) -> _Plan:
    """For keys ``[B, H, S, D]`` and so many queries per head.

    As many programs as run at the same time, without a second wave of a few. Where there are more
    heads than that, larger blocks and smaller second programs keep the waves even. Found on an
    H200, for 8 heads per row of dimension 64 or 128 and 1,281 to 8,193 slots.
    """
    batch, heads, length, head_dim = slots.shape
    stages, programs = _room(slots, block=32)
    if batch * heads > programs:
        return _Plan(1, block=64, stages=_room(slots, block=64)[0], warps=2, finishing_warps=2)
    most = min(_MOST_SPLITS, triton.cdiv(length, 32), _HELD_TOGETHER // (block_group * head_dim))
    splits = max(1, min(programs // (batch * heads), most))
    return _Plan(splits, block=32, stages=stages, warps=1, finishing_warps=4)


def _room(slots: Tensor, block: int) -> tuple[int, int]:
    """Stages of such blocks, three if they fit, and how many programs run at the same time."""
    memory = shared_memory(slots.device)
    stage = 2 * block * slots.shape[-1] * slots.itemsize
    stages = max(1, min(3, (memory - _OTHER_MEMORY) // stage))
    return stages, processors(slots.device) * (memory // (stages * stage + _OTHER_MEMORY))


@triton.jit
def _rotated(states_ptr, cos_ptr, sin_ptr, d, mask, ROTATE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Load states ``[..., D]``, turned by RoPE where they come without."""
    state = tl.load(states_ptr + d, mask=mask, other=0.0)
    if ROTATE:
        half: tl.constexpr = HEAD_DIM // 2
        other = tl.load(states_ptr + (d + half) % HEAD_DIM, mask=mask, other=0.0).to(tl.float32)
        other = tl.where(d < half, -other, other)
        cos, sin = tl.load(cos_ptr + d).to(tl.float32), tl.load(sin_ptr + d).to(tl.float32)
        state = (state.to(tl.float32) * cos + other * sin).to(state.dtype)
    return state


@triton.jit
def _attend(
    queries_ptr,
    new_keys_ptr,
    new_values_ptr,
    cos_ptr,
    sin_ptr,
    keys_ptr,
    values_ptr,
    positions_ptr,
    vacant_ptr,
    newest_ptr,
    protected_ptr,
    position_ptr,
    logits_ptr,
    weighted_ptr,
    maxima_ptr,
    totals_ptr,
    queries_stride,
    new_keys_stride,
    new_values_stride,
    slots,
    scaling,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    SCORED: tl.constexpr,
    ROTATE: tl.constexpr,
):
    """Attention of one head's query group to one split of its slots, not yet normalised."""
    split, splits = tl.program_id(0), tl.num_programs(0)
    head, row = tl.program_id(1), tl.program_id(2)
    pair = (row * tl.num_programs(1) + head).to(tl.int64)
    d, g = tl.arange(0, HEAD_DIM), tl.arange(0, BLOCK_GROUP)
    grouped = (g < GROUP)[:, None]
    keys_ptr += pair * slots * HEAD_DIM
    values_ptr += pair * slots * HEAD_DIM
    positions_ptr += pair * slots
    logits_ptr += pair * GROUP * slots
    if ROTATE:
        cos_ptr += row * HEAD_DIM
        sin_ptr += row * HEAD_DIM
    new_slot = tl.load(vacant_ptr + pair)
    newest = tl.load(newest_ptr + row)
    position = tl.load(position_ptr + row)
    protected = tl.load(protected_ptr + row)

    group_ptr = queries_ptr + row * queries_stride + (head * GROUP + g[:, None]) * HEAD_DIM
    query = _rotated(group_ptr, cos_ptr, sin_ptr, d[None, :], grouped, ROTATE, HEAD_DIM)
    new_key_ptr = new_keys_ptr + row * new_keys_stride + head * HEAD_DIM
    new_key = _rotated(new_key_ptr, cos_ptr, sin_ptr, d, d >= 0, ROTATE, HEAD_DIM)
    new_value = tl.load(new_values_ptr + row * new_values_stride + head * HEAD_DIM + d)

    # The first split begins with the new token, the others with nothing. Until the second kernel
    # gives the token's slot a position, all splits skip that slot.
    is_first = split == 0
    products = query.to(tl.float32) * new_key.to(tl.float32)[None, :]
    new_logits = tl.sum(products, axis=1) * (scaling * _LOG2_E)
    maximum = tl.where(is_first, new_logits, float("-inf"))
    total = tl.where(is_first & (g < GROUP), 1.0, 0.0)
    weighted = tl.where(is_first & grouped, new_value.to(tl.float32)[None, :], 0.0)
    if is_first:
        tl.store(keys_ptr + new_slot * HEAD_DIM + d, new_key)
        tl.store(values_ptr + new_slot * HEAD_DIM + d, new_value)
        if SCORED:
            tl.store(logits_ptr + g * slots + new_slot, new_logits, mask=g < GROUP)

    filled = tl.minimum(newest, slots)
    blocks = tl.cdiv(tl.cdiv(filled, splits), BLOCK)
    start = split * blocks * BLOCK
    end = tl.minimum(start + blocks * BLOCK, filled)
    for first in range(start, end, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        places = slot.to(tl.int64) * HEAD_DIM
        inside = slot < end
        held = tl.load(positions_ptr + slot, mask=inside, other=_FREE)
        visible = held != _FREE
        if WINDOW:
            visible &= held > position - WINDOW
        key = tl.load(keys_ptr + places[None, :] + d[:, None], mask=inside[None, :], other=0.0)
        logits = tl.dot(query, key, input_precision="ieee") * (scaling * _LOG2_E)
        logits = tl.where(visible[None, :], logits, float("-inf"))
        if SCORED:
            scored = grouped & (inside & (slot >= protected) & (slot != new_slot))[None, :]
            tl.store(logits_ptr + g[:, None] * slots + slot[None, :], logits, mask=scored)
        highest = tl.maximum(maximum, tl.max(logits, axis=1))
        # Where nothing has been visible yet, any finite reference does.
        reference = tl.where(highest == float("-inf"), 0.0, highest)
        weights = tl.exp2(logits - reference[:, None])
        shrink = tl.exp2(maximum - reference)
        value = tl.load(values_ptr + places[:, None] + d[None, :], mask=inside[:, None], other=0.0)
        total = total * shrink + tl.sum(weights, axis=1)
        weighted = tl.dot(
            weights.to(value.dtype), value, weighted * shrink[:, None], input_precision="ieee"
        )
        maximum = highest
    part = (pair * splits + split) * GROUP + g
    tl.store(maxima_ptr + part, maximum, mask=g < GROUP)
    tl.store(totals_ptr + part, total, mask=g < GROUP)
    tl.store(weighted_ptr + part[:, None] * HEAD_DIM + d[None, :], weighted, mask=grouped)


@triton.jit(do_not_specialize=["layer"])
def _finish(
    logits_ptr,
    weighted_ptr,
    maxima_ptr,
    totals_ptr,
    output_ptr,
    positions_ptr,
    ranks_ptr,
    scores_ptr,
    vacant_ptr,
    newest_ptr,
    protected_ptr,
    losses_ptr,
    position_ptr,
    slots,
    splits,
    layer,
    recent,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    SCORE: tl.constexpr,
    MEAN: tl.constexpr,
    SCORE_DTYPE: tl.constexpr,
):
    """Join the splits of one head; beside that, a second program looks after its slots."""
    head, row = tl.program_id(0), tl.program_id(1)
    pair = (row * tl.num_programs(0) + head).to(tl.int64)
    split = tl.arange(0, BLOCK_SPLITS)[:, None]
    g = tl.arange(0, BLOCK_GROUP)
    parts = (pair * splits + split) * GROUP + g[None, :]
    exists = (split < splits) & (g < GROUP)[None, :]
    maxima = tl.load(maxima_ptr + parts, mask=exists, other=float("-inf"))
    totals = tl.load(totals_ptr + parts, mask=exists, other=0.0)
    maximum = tl.where(g < GROUP, tl.max(maxima, axis=0), 0.0)
    shares = tl.exp2(maxima - maximum[None, :])
    total = tl.where(g < GROUP, tl.sum(totals * shares, axis=0), 1.0)
    if tl.program_id(2) == 0:
        d = tl.arange(0, HEAD_DIM)
        places = parts[:, :, None] * HEAD_DIM + d[None, None, :]
        weighted = tl.load(weighted_ptr + places, mask=exists[:, :, None], other=0.0)
        output = tl.sum(weighted * shares[:, :, None], axis=0) / total[:, None]
        places = (pair * GROUP + g[:, None]) * HEAD_DIM + d[None, :]
        output = output.to(output_ptr.dtype.element_ty)
        tl.store(output_ptr + places, output, mask=(g < GROUP)[:, None])
        return

    positions_ptr += pair * slots
    ranks_ptr += pair * slots
    scores_ptr += pair * slots
    logits_ptr += pair * GROUP * slots
    newest = tl.load(newest_ptr + row)
    new_slot = tl.load(vacant_ptr + pair)
    tl.store(positions_ptr + new_slot, tl.load(position_ptr + row))
    tl.store(ranks_ptr + new_slot, newest)
    vacant = newest + 1
    if SCORE is not None:
        protected = tl.load(protected_ptr + row)
        # A protected token's slot is its rank, and no slot beyond the newest rank was ever taken.
        start = tl.minimum(protected, newest)
        end = tl.minimum(newest + 1, slots)
        losses = tl.load(losses_ptr + row)
        # Losers leave in order, so whoever comes after the last one is still there. The first round
        # also looks for a free slot and adds to the scores. Each lane keeps the best of its slots;
        # they are compared once a round.
        last_key, last_slot = _FIRST, -1
        for loss in range(tl.maximum(losses, 1)):
            least = tl.full((BLOCK,), _LAST, tl.int64)
            loser = tl.full((BLOCK,), 0, tl.int32) + slots
            free = loser
            for first in range(start, end, BLOCK):
                slot = first + tl.arange(0, BLOCK)
                inside = slot < end
                is_new = slot == new_slot
                rank = tl.load(ranks_ptr + slot, mask=inside, other=_FREE).to(tl.int64)
                is_free = inside & (rank == _FREE) & ~is_new
                free = tl.where(is_free, tl.minimum(free, slot), free)
                if SCORE == "recent":
                    key = rank
                elif SCORE == "random":
                    key = _hash(rank + 1_000_003 * head + 1_000_000_007 * tl.cast(layer, tl.int64))
                else:
                    worth = _received(
                        logits_ptr, slots, slot, inside, maximum, total, g, GROUP, MEAN, SCORE_DTYPE
                    )
                    if SCORE == "cumulative":
                        score = tl.load(scores_ptr + slot, mask=inside & ~is_new, other=0.0)
                        worth = tl.where(loss == 0, score + worth, score)
                        tl.store(scores_ptr + slot, worth, mask=inside & (loss == 0))
                    key = (worth.to(tl.int32, bitcast=True).to(tl.int64) << 32) - rank
                may_go = (rank >= protected) & (rank <= newest - recent) & ~is_new & (losses > 0)
                may_go &= (key > last_key) | ((key == last_key) & (slot > last_slot))
                lower = may_go & (key < least)
                loser = tl.where(lower, slot, loser)
                least = tl.where(lower, key, least)
            lowest = tl.min(least)
            leaves = tl.min(tl.where(least == lowest, loser, slots))
            if SCORE == "cumulative":
                tl.debug_barrier()  # the next round reads the scores
            tl.store(positions_ptr + leaves, _FREE, mask=leaves < slots)
            tl.store(ranks_ptr + leaves, _FREE, mask=leaves < slots)
            vacant = tl.minimum(vacant, tl.minimum(tl.min(free), leaves))
            last_key, last_slot = lowest, leaves
    tl.store(vacant_ptr + pair, tl.minimum(vacant, slots - 1))


@triton.jit
def _hash(numbers):
    """As in `SlotLayer`."""
    for _ in tl.static_range(2):
        numbers = ((numbers ^ (numbers >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return numbers ^ (numbers >> 16)


@triton.jit
def _received(
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
