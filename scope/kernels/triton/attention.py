# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""Decode attention over slots in Triton: attend, then join and evict.

The first kernel splits the slots of each head over programs and reads every key and value once. The
second joins the splits, and frees the slots of the tokens that must go, or else tells what
attention each slot received, and a third frees slots by a worth that somebody has made of it.
Between them only the logits of slots that are looked at are written. Nothing waits for the host:
what is due comes as tensors of counts.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from scope.kernels import processors, shared_memory
from scope.kernels.tensors import (
    FREE,
    CompactTensors,
    NewTokens,
    Ranking,
    Received,
    Sight,
    SlotTensors,
    StepCounts,
)
from scope.kernels.triton.chance import mixed
from scope.kernels.triton.compact import attend_compact
from scope.kernels.triton.rotary import rotated
from scope.kernels.triton.softmax import joined
from scope.kernels.triton.words import from_e4m3

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
# Kernels that may need what a token is worth more than once.
_OF_ATTENTION = ("current", "cumulative", "peak", "value range", "recurrence")
_LOG2_E = tl.constexpr(1.4426950408889634)
_FREE = tl.constexpr(FREE)
_FIRST = tl.constexpr(-(2**63))
_LAST = tl.constexpr(2**63 - 1)


def attend_and_evict(
    slots: SlotTensors, counts: StepCounts, new: NewTokens, sight: Sight, ranking: Ranking
) -> Tensor:
    """Append one token per row, attend to all that is held, then evict what must go.

    See `FusingBackend`. Rows of the queries, keys and values may be strided, heads may not.
    """
    scored = "unprotected" if ranking.kernel in _OF_ATTENTION else None
    split = _attend_splits(slots, counts, new, sight, scored)
    output = _empty_output(new)
    _launch_finish(split, slots, counts, output, ranking)
    return output


def attend(
    slots: SlotTensors,
    counts: StepCounts,
    new: NewTokens,
    sight: Sight,
    received: Received | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Append one token per row and attend to what is seen; see `Backend`."""
    split = _attend_splits(slots, counts, new, sight, "all" if received else None)
    output = _empty_output(new)
    if received is None:
        _launch_finish(split, slots, counts, output, None)
        return output, None
    attention = torch.empty(slots.shape[:3], dtype=torch.float32, device=output.device)
    _launch_finish(split, slots, counts, output, received, attention)
    return output, attention


def look(slots: SlotTensors, counts: StepCounts, new: NewTokens, sight: Sight) -> Tensor:
    """Attend to what is held after a step; see `Backend`."""
    split = _attend_splits(slots, counts, new, sight, None, joins=False)
    output = _empty_output(new)
    _launch_finish(split, slots, counts, output, None, joins=False)
    return output


def evict(slots: SlotTensors, counts: StepCounts, worth: Tensor | None, recent: int) -> None:
    """Free the slots of the least worthy tokens, and choose the next vacant one; see `Backend`."""
    batch, heads, length, _ = slots.shape
    warps = _plan(slots, block_group=1, length=length).finishing_warps
    if worth is not None and worth.stride(2) != 1:
        worth = worth.contiguous()
    _evict[heads, batch](
        worth,
        slots.positions,
        slots.ranks,
        slots.vacant,
        *_spans(slots),
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


@dataclass(frozen=True)
class _Splits:
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
    plan: "_Plan"


def _attend_splits(
    slots: SlotTensors,
    counts: StepCounts,
    new: NewTokens,
    sight: Sight,
    scored: Literal["all", "unprotected"] | None,
    joins: bool = True,
) -> _Splits:
    """Attend; logits are kept of the slots that are ``scored``.

    The new tokens join what is held, or their queries look alone.
    """
    batch, heads, length, head_dim = slots.shape
    group = new.queries.shape[1] // heads
    block_group = triton.next_power_of_2(group)
    listed = sight.listed
    in_part = listed is not None and listed.full is None
    names = listed.slots.shape[-1] if listed is not None else 0
    plan = _plan(slots, block_group, names if in_part else length)
    wide = {"dtype": torch.float32, "device": new.queries.device}
    logits = torch.empty(batch, heads, group, length if scored else 0, **wide)
    weighted = torch.empty(batch, heads, plan.splits, group, head_dim, **wide)
    maxima = torch.empty(batch, heads, plan.splits, group, **wide)
    totals = torch.empty_like(maxima)
    cos, sin = new.rotation or (None, None)
    key_scale = slots.key_scale
    compact = slots.compact
    pruned = compact is not None and compact.channels is not None
    rounded = compact is not None and compact.key_bits is not None
    _attend[plan.splits, heads, batch](
        new.queries,
        new.keys,
        new.values,
        cos,
        sin,
        slots.keys,
        slots.values,
        key_scale.scale if key_scale else None,
        key_scale.shift if key_scale else None,
        slots.positions,
        slots.vacant,
        listed.slots if listed is not None else None,
        listed.since if listed is not None else None,
        listed.full if listed is not None else None,
        listed.keys if listed is not None else None,
        listed.values if listed is not None else None,
        *_spans(slots),
        counts.newest,
        counts.protected,
        counts.position,
        slots.last_queries,
        logits,
        weighted,
        maxima,
        totals,
        *_compact_pointers(compact),
        new.queries.stride(0),
        new.keys.stride(0),
        new.values.stride(0),
        length,
        compact.positions.shape[2] if compact else 0,
        plan.compact_splits,
        names,
        0 if slots.last_queries is None else slots.last_queries.shape[2],
        sight.scaling,
        WINDOW=sight.sliding_window or 0,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_GROUP=max(16, block_group),
        BLOCK=plan.block,
        IN_SLOTS=_TRITON_DTYPE[_multiplied_in(slots.keys.itemsize == 1, new)],
        JOINS=joins,
        SCORED=scored,
        LISTED=listed is not None,
        ANY_FULL=not in_part,
        NEAR=listed is not None and listed.keys is not None,
        SPANS=slots.spans is not None,
        ROTATE=new.rotation is not None,
        COMPACT=compact is not None,
        KEY_CHANNELS=compact.channels.shape[-1] if pruned else head_dim,
        KEY_BITS=compact.key_bits if compact else None,
        VALUE_BITS=compact.value_bits if compact else None,
        KEY_GROUP=compact.group if compact else 1,
        VALUE_GROUP=min(compact.group, head_dim) if rounded else head_dim,
        COMPACT_BLOCK=min(compact.group, 32) if rounded else 32,
        IN_COMPACT=_TRITON_DTYPE[_multiplied_in(rounded, new)],
        num_warps=plan.warps,
        num_stages=plan.stages,
    )
    return _Splits(logits, weighted, maxima, totals, plan)


def _multiplied_in(few_bits: bool, new: NewTokens) -> torch.dtype:
    """What keys and values become: of few bits float16, which takes the fewest instructions."""
    queries = new.queries.dtype
    return torch.float16 if few_bits and queries.itemsize == 2 else queries


def _compact_pointers(compact: CompactTensors | None) -> tuple[Tensor | None, ...]:
    if compact is None:
        return (None,) * 7
    keys, values = compact.keys, compact.values
    return (
        keys.packed,
        keys.grid.view(torch.int32),
        values.packed,
        values.grid.view(torch.int32),
        compact.channels,
        compact.positions,
        compact.count,
    )


def _spans(slots: SlotTensors) -> tuple[Tensor | None, ...]:
    spans = slots.spans
    return (None,) * 3 if spans is None else (spans.start, spans.room, spans.gap)


def _empty_output(new: NewTokens) -> Tensor:
    return torch.empty(new.queries.shape, dtype=new.queries.dtype, device=new.queries.device)


def _launch_finish(
    split: _Splits,
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
    if kernel in _OF_ATTENTION:
        worths = torch.empty(slots.shape[:3], dtype=torch.float32, device=output.device)
    _finish[heads, batch, 2 if joins else 1](
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
        *_spans(slots),
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
        BLOCK_SPLITS=triton.next_power_of_2(split.plan.splits),
        BLOCK=256 * split.plan.finishing_warps,
        JOINS=joins,
        JOB=kernel,
        SPANS=slots.spans is not None,
        MEAN=received.reduction == "mean",
        SCORE_DTYPE=_TRITON_DTYPE[received.dtype],
        num_warps=split.plan.finishing_warps,
    )


@dataclass(frozen=True)
class _Plan:
    """How the GPU is shared out.

    Attributes:
        splits: of what is held of each head, with a program each.
        compact_splits: of these, the first, which are of what is beside the slots.
        block: slots that a program reads at once.
        stages: blocks on their way at the same time.
        warps: of these programs.
        finishing_warps: of the second kernel's programs.
    """

    splits: int
    compact_splits: int
    block: int
    stages: int
    warps: int
    finishing_warps: int


def _plan(slots: SlotTensors, block_group: int, length: int) -> _Plan:
    """For these slots, so many queries per head, and most slots that a head reads.

    As many programs as run at the same time, without a second wave of a few. Where there are more
    heads than that, larger blocks and smaller second programs keep the waves even. Beside what has
    few bits, smaller blocks of slots leave room for more programs, which instructions wait for.
    Found on an H200 and an H100, for 8 heads per row of dimension 64 or 128 and 1,281 to 8,193
    slots.
    """
    batch, heads, _, head_dim = slots.shape
    compact, device = slots.compact, slots.vacant.device
    beside = compact.positions.shape[2] if compact else 0
    few_bits = compact is not None and compact.key_bits is not None
    block = 16 if few_bits and slots.keys.itemsize > 1 else 32
    stages, programs = _room(slots, block)
    if batch * heads > programs and not beside:
        return _Plan(1, 0, 64, _room(slots, block=64)[0], warps=2, finishing_warps=2)
    held = beside + length
    most = min(_MOST_SPLITS, triton.cdiv(held, 32), _HELD_TOGETHER // (block_group * head_dim))
    splits = max(4 if beside else 1, min(programs // (batch * heads), most))
    of_compact = min(max(round(splits * beside / held), 1), splits - 1) if beside else 0
    warps = 2 if few_bits and batch * heads * splits <= 2 * processors(device) else 1
    return _Plan(splits, of_compact, block, stages, warps, finishing_warps=4 if splits > 16 else 2)


def _room(slots: SlotTensors, block: int) -> tuple[int, int]:
    """Stages of such blocks, three if they fit, and how many programs run at the same time."""
    device = slots.vacant.device  # keys may be in host memory
    memory = shared_memory(device)
    stage = 2 * block * slots.keys.shape[-1] * slots.keys.itemsize
    stages = max(1, min(3, (memory - _OTHER_MEMORY) // stage))
    return stages, processors(device) * (memory // (stages * stage + _OTHER_MEMORY))


@triton.jit(do_not_specialize=["compact_splits"])
def _attend(
    queries_ptr,
    new_keys_ptr,
    new_values_ptr,
    cos_ptr,
    sin_ptr,
    keys_ptr,
    values_ptr,
    scale_ptr,
    shift_ptr,
    positions_ptr,
    vacant_ptr,
    names_ptr,
    since_ptr,
    full_ptr,
    near_keys_ptr,
    near_values_ptr,
    start_ptr,
    room_ptr,
    gap_ptr,
    newest_ptr,
    protected_ptr,
    position_ptr,
    last_queries_ptr,
    logits_ptr,
    weighted_ptr,
    maxima_ptr,
    totals_ptr,
    compact_keys_ptr,
    key_grid_ptr,
    compact_values_ptr,
    value_grid_ptr,
    channels_ptr,
    compact_positions_ptr,
    compact_count_ptr,
    queries_stride,
    new_keys_stride,
    new_values_stride,
    slots,
    compact_slots,
    compact_splits,
    names,
    last_queries,
    scaling,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    IN_SLOTS: tl.constexpr,
    JOINS: tl.constexpr,
    SCORED: tl.constexpr,
    LISTED: tl.constexpr,
    ANY_FULL: tl.constexpr,
    NEAR: tl.constexpr,
    SPANS: tl.constexpr,
    ROTATE: tl.constexpr,
    COMPACT: tl.constexpr,
    KEY_CHANNELS: tl.constexpr,
    KEY_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    KEY_GROUP: tl.constexpr,
    VALUE_GROUP: tl.constexpr,
    COMPACT_BLOCK: tl.constexpr,
    IN_COMPACT: tl.constexpr,
):
    """Attention of one head's query group to one split of what is held, not yet normalised.

    Its slots are the first that were ever taken, or with LISTED those with a name, which are then
    all that is read; ANY_FULL leaves the choice to each row. With NEAR the slots are in host
    memory, and of those with a name there are copies, in the order of the names. With COMPACT, the
    first splits are of what is held in less room beside the slots.
    """
    head, row = tl.program_id(1), tl.program_id(2)
    pair = (row * tl.num_programs(1) + head).to(tl.int64)
    d, g = tl.arange(0, HEAD_DIM), tl.arange(0, BLOCK_GROUP)
    grouped = (g < GROUP)[:, None]
    split, splits = tl.program_id(0), tl.num_programs(0)
    part = (pair * splits + split) * GROUP + g
    oldest = _FREE  # the last position that is not seen
    if WINDOW:
        oldest = tl.maximum(tl.load(position_ptr + row) - WINDOW, _FREE)
    group_ptr = queries_ptr + row * queries_stride + (head * GROUP + g[:, None]) * HEAD_DIM
    if ROTATE:
        cos_ptr += row * HEAD_DIM
        sin_ptr += row * HEAD_DIM
    if COMPACT:  # noqa: SIM102  (known when compiling)
        if split < compact_splits:
            attend_compact(
                group_ptr, cos_ptr, sin_ptr, g < GROUP,
                compact_keys_ptr, key_grid_ptr, compact_values_ptr, value_grid_ptr,
                compact_positions_ptr, channels_ptr, compact_count_ptr + row,
                maxima_ptr + part, totals_ptr + part, weighted_ptr + part * HEAD_DIM,
                pair, split, compact_splits, compact_slots, oldest, scaling,
                HEAD_DIM, BLOCK_GROUP, COMPACT_BLOCK, ROTATE, KEY_CHANNELS, KEY_BITS, VALUE_BITS,
                KEY_GROUP, VALUE_GROUP, IN_COMPACT,
            )  # fmt: skip
            return
    split, splits = split - compact_splits, splits - compact_splits
    first_slot, room, gap = _span(start_ptr, room_ptr, gap_ptr, pair, slots, SPANS)
    keys_ptr += first_slot * HEAD_DIM
    values_ptr += first_slot * HEAD_DIM
    positions_ptr += first_slot
    logits_ptr += pair * GROUP * slots
    new_slot = tl.load(vacant_ptr + pair)
    newest = tl.load(newest_ptr + row)
    first_scored = 0
    if SCORED == "unprotected":
        first_scored = tl.load(protected_ptr + row) - gap

    query = rotated(group_ptr, cos_ptr, sin_ptr, d[None, :], grouped, ROTATE, HEAD_DIM)
    # What meets the keys in slots, its product with what these leave out, and what is still to be
    # multiplied with: where queries are scaled anyway, nothing is, so that none is too large.
    slot_query, factor = query, scaling * _LOG2_E
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + pair * HEAD_DIM + d)
        shift = tl.load(shift_ptr + pair * HEAD_DIM + d)
        scaled = query.to(tl.float32) * factor
        base = tl.sum(scaled * shift[None, :], axis=1)
        slot_query, factor = (scaled * scale[None, :]).to(IN_SLOTS), 1.0

    is_first = split == 0
    maximum = tl.full((BLOCK_GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_GROUP,), tl.float32)
    # Values of 8 bits are read as words of two, which tensor cores take across tokens; bytes would
    # be read one by one.
    bits: tl.constexpr = values_ptr.dtype.element_ty.primitive_bitwidth
    tiles: tl.constexpr = 2 if bits == 8 and IN_SLOTS.primitive_bitwidth == 16 else 1
    v = tl.arange(0, HEAD_DIM // tiles)
    weighted = ()
    for _ in tl.static_range(tiles):
        weighted += (tl.zeros((BLOCK_GROUP, HEAD_DIM // tiles), tl.float32),)
    if JOINS:
        new_key_ptr = new_keys_ptr + row * new_keys_stride + head * HEAD_DIM
        new_key = rotated(new_key_ptr, cos_ptr, sin_ptr, d, d >= 0, ROTATE, HEAD_DIM)
        if scale_ptr is not None:
            new_key = (new_key.to(tl.float32) - shift) / scale
        new_key = _stored(new_key, keys_ptr)
        new_value_ptr = new_values_ptr + row * new_values_stride + head * HEAD_DIM
        new_value = _stored(tl.load(new_value_ptr + d), values_ptr)
        # The first split begins with the new token, the others with nothing. Until the second
        # kernel gives the token's slot a position, all splits skip that slot.
        products = slot_query.to(tl.float32) * new_key.to(tl.float32)[None, :]
        new_logits = tl.sum(products, axis=1)
        if scale_ptr is not None:
            new_logits += base
        new_logits *= factor
        maximum = tl.where(is_first, new_logits, maximum)
        total = tl.where(is_first & (g < GROUP), 1.0, total)
        weighted = ()
        for tile in tl.static_range(tiles):
            own = _stored(tl.load(new_value_ptr + tiles * v + tile), values_ptr).to(tl.float32)
            weighted += (tl.where(is_first & grouped, own[None, :], 0.0),)
        if is_first:
            tl.store(keys_ptr + new_slot * HEAD_DIM + d, new_key)
            tl.store(values_ptr + new_slot * HEAD_DIM + d, new_value)
            if SCORED is not None:
                tl.store(logits_ptr + g * slots + new_slot, new_logits, mask=g < GROUP)
            if last_queries_ptr is not None:
                noted = (pair * GROUP + g[:, None]) * last_queries + newest % last_queries
                noted_ptr = last_queries_ptr + noted * HEAD_DIM + d[None, :]
                tl.store(noted_ptr, query.to(tl.float32), mask=grouped)

    filled = newest - gap
    if not JOINS:  # the newest is there already
        filled += 1
    filled = tl.minimum(filled, room)
    if LISTED:
        names_ptr += pair * names
        place = tl.maximum(newest - tl.load(since_ptr + row) - 1, 0) % names
        in_part = place >= 0
        if ANY_FULL:
            in_part = tl.load(full_ptr + row) == 0
        filled = tl.where(in_part, names, filled)
        # The other splits leave out the name that this one overwrites.
        if is_first & in_part:
            tl.store(names_ptr + place, new_slot)
        if NEAR:
            near_keys_ptr += pair * names * HEAD_DIM
            near_values_ptr += pair * names * HEAD_DIM
            if is_first & in_part:
                tl.store(near_keys_ptr + place * HEAD_DIM + d, new_key)
                tl.store(near_values_ptr + place * HEAD_DIM + d, new_value)
    blocks = tl.cdiv(tl.cdiv(filled, splits), BLOCK)
    start = split * blocks * BLOCK
    end = tl.minimum(start + blocks * BLOCK, filled)
    for first in range(start, end, BLOCK):
        number = first + tl.arange(0, BLOCK)
        slot = number
        inside = slot < end
        if LISTED:
            named = (slot < tl.where(in_part, end, 0)) & (slot != place)
            name = tl.load(names_ptr + slot, mask=named, other=_FREE)
            slot = tl.where(in_part, name, slot)
            inside &= slot != _FREE
        held_keys_ptr, held_values_ptr, place_there = keys_ptr, values_ptr, slot
        if NEAR:
            held_keys_ptr = tl.where(in_part, near_keys_ptr, keys_ptr)
            held_values_ptr = tl.where(in_part, near_values_ptr, values_ptr)
            place_there = tl.where(in_part, number, slot)
        places = place_there.to(tl.int64) * HEAD_DIM
        held = tl.load(positions_ptr + slot, mask=inside, other=_FREE)
        visible = held > oldest
        key = tl.load(held_keys_ptr + places[None, :] + d[:, None], mask=inside[None, :], other=0.0)
        logits = tl.dot(slot_query, key.to(IN_SLOTS), input_precision="ieee")
        if scale_ptr is not None:
            logits += base[:, None]
        logits = tl.where(visible[None, :], logits * factor, float("-inf"))
        if SCORED is not None:
            scored = grouped & (inside & (slot >= first_scored) & (slot != new_slot))[None, :]
            tl.store(logits_ptr + g[:, None] * slots + slot[None, :], logits, mask=scored)
        if tiles == 2:
            words_ptr = held_values_ptr.to(tl.pointer_type(tl.int16))
            words_ptr += places[:, None] // 2 + v[None, :]
            words = tl.load(words_ptr, mask=inside[:, None], other=0)
            values = from_e4m3(words)
        else:
            values_there_ptr = held_values_ptr + places[:, None] + d[None, :]
            value = tl.load(values_there_ptr, mask=inside[:, None], other=0.0)
            values = (value.to(IN_SLOTS),)
        maximum, total, weighted = joined(logits, values, maximum, total, weighted)
    tl.store(maxima_ptr + part, maximum, mask=g < GROUP)
    tl.store(totals_ptr + part, total, mask=g < GROUP)
    for tile in tl.static_range(tiles):
        places = part[:, None] * HEAD_DIM + (tiles * v + tile)[None, :]
        tl.store(weighted_ptr + places, weighted[tile], mask=grouped)


@triton.jit
def _stored(state, slots_ptr):
    """A new key or value in the type of the slots."""
    dtype: tl.constexpr = slots_ptr.dtype.element_ty
    if dtype == tl.float8e4nv:
        state = tl.minimum(tl.maximum(state.to(tl.float32), -448.0), 448.0)
    return state.to(dtype)


@triton.jit
def _span(start_ptr, room_ptr, gap_ptr, pair, slots, SPANS: tl.constexpr):
    """A head's first slot, how many it has, and how far its slots lag behind the ranks."""
    first_slot, room, gap = pair * slots, slots, 0
    if SPANS:
        first_slot = tl.load(start_ptr + pair)
        room = tl.load(room_ptr + pair)
        gap = tl.load(gap_ptr + pair)
    return first_slot, room, gap


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
    BLOCK_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    JOINS: tl.constexpr,
    JOB: tl.constexpr,
    SPANS: tl.constexpr,
    MEAN: tl.constexpr,
    SCORE_DTYPE: tl.constexpr,
):
    """Join the splits of one head; beside that, a second program looks after its slots.

    JOB names what slots are freed by; ``report`` writes to ``worths`` what attention each slot
    received and frees none.
    """
    head, row = tl.program_id(0), tl.program_id(1)
    pair = (row * tl.num_programs(0) + head).to(tl.int64)
    split = tl.arange(0, BLOCK_SPLITS)[:, None]
    g = tl.arange(0, BLOCK_GROUP)
    parts = (pair * splits + split) * GROUP + g[None, :]
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
    if tl.program_id(2) == 0:
        d = tl.arange(0, HEAD_DIM)
        places = parts[:, :, None] * HEAD_DIM + d[None, None, :]
        weighted = tl.load(weighted_ptr + places, mask=exists[:, :, None], other=0.0)
        output = tl.sum(weighted * shares[:, :, None], axis=0) / total[:, None]
        places = (pair * GROUP + g[:, None]) * HEAD_DIM + d[None, :]
        output = output.to(output_ptr.dtype.element_ty)
        tl.store(output_ptr + places, output, mask=(g < GROUP)[:, None])
        return

    first_slot, room, gap = _span(start_ptr, room_ptr, gap_ptr, pair, slots, SPANS)
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
            received = _received(
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
                    least_large = _least_large(
                        range_ptr, ranks_ptr, start, end, protected, last_to_go, large, BLOCK
                    )
            # Losers leave in order, so whoever comes after the last one is still there. The first
            # round also looks for a free slot and adds to the scores. Each lane keeps the best of
            # its slots; they are compared once a round.
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
                    if JOB == "recent":
                        key = rank
                    elif JOB == "random" or JOB == "fresh random":
                        key = (_drawn(rank, chance) << 32) - rank
                    else:
                        if loss == 0:
                            worth = _received(
                                logits_ptr, slots, slot, inside, maximum, total, g,
                                GROUP, MEAN, SCORE_DTYPE,
                            )  # fmt: skip
                            worth = _worth(
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
                    least, loser = _lower(key, slot, may_go, last_key, last_slot, least, loser)
                lowest = tl.min(least)
                leaves = tl.min(tl.where(least == lowest, loser, slots))
                if worths_ptr is not None:
                    tl.debug_barrier()  # the next round reads the worths
                tl.store(positions_ptr + leaves, _FREE, mask=leaves < slots)
                tl.store(ranks_ptr + leaves, _FREE, mask=leaves < slots)
                vacant = tl.minimum(vacant, tl.minimum(tl.min(free), leaves))
                last_key, last_slot = lowest, leaves
        # An idle row counts from 0, below its gap.
        tl.store(vacant_ptr + pair, tl.maximum(tl.minimum(vacant, room - 1), 0))


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
    first_slot, room, gap = _span(start_ptr, room_ptr, gap_ptr, pair, slots, SPANS)
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
        last_key, last_slot = _FIRST, -1
        for _ in range(tl.maximum(losses, 1)):
            least = tl.full((BLOCK,), _LAST, tl.int64)
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
                least, loser = _lower(key, slot, may_go, last_key, last_slot, least, loser)
            lowest = tl.min(least)
            leaves = tl.min(tl.where(least == lowest, loser, slots))
            tl.store(positions_ptr + leaves, _FREE, mask=leaves < slots)
            tl.store(ranks_ptr + leaves, _FREE, mask=leaves < slots)
            vacant = tl.minimum(vacant, tl.minimum(tl.min(free), leaves))
            last_key, last_slot = lowest, leaves
    tl.store(vacant_ptr + pair, tl.maximum(tl.minimum(vacant, room - 1), 0))


@triton.jit
def _lower(key, slot, may_go, last_key, last_slot, least, loser):
    """Each lane's lowest key so far of those that may go and come after the last, and its slot."""
    may_go &= (key > last_key) | ((key == last_key) & (slot > last_slot))
    lower = may_go & (key < least)
    return tl.where(lower, key, least), tl.where(lower, slot, loser)


@triton.jit
def _ordered(worth, rank):
    """Keys as in the reference; the bits of floats that are not negative need no turning."""
    bits = worth.to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits.to(tl.int64) << 32) - rank


@triton.jit
def _worth(
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
        uniform = (_drawn(rank, chance).to(tl.float32) + 0.5) * 2.0**-24
        is_large = spread.to(tl.int32, bitcast=True) >= least_large
        worth = tl.where(is_large, spread * 2.0**100, worth / -tl.log(uniform))
    return worth


@triton.jit
def _least_large(
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
def _drawn(rank, chance):
    """24 bits, of which the same rank and chance draw the same."""
    return mixed(mixed(rank) + chance) >> 8


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
