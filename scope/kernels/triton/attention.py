# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""Decode attention over slots in Triton: attend, then join and evict.

The first kernel splits the slots of each head over programs and reads every key and value once. The
second (`finishing`) joins the splits, and frees the slots of the tokens that must go, or else tells
what attention each slot received, and a third (`eviction`) frees slots by a worth that somebody has
made of it. Between them only the logits of slots that are looked at are written. Nothing waits for
the host: what is due comes as tensors of counts.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

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
from scope.kernels.triton.compact import attend_compact
from scope.kernels.triton.finishing import OF_ATTENTION, TRITON_DTYPE, Splits, finish
from scope.kernels.triton.plan import plan_of
from scope.kernels.triton.rotary import rotated
from scope.kernels.triton.softmax import joined
from scope.kernels.triton.spans import span, span_pointers
from scope.kernels.triton.words import from_e4m3

_LOG2_E = tl.constexpr(1.4426950408889634)
_FREE = tl.constexpr(FREE)


def attend_and_evict(
    slots: SlotTensors, counts: StepCounts, new: NewTokens, sight: Sight, ranking: Ranking
) -> Tensor:
    """Append one token per row, attend to all that is held, then evict what must go.

    See `FusingBackend`. Rows of the queries, keys and values may be strided, heads may not.
    """
    scored = "unprotected" if ranking.kernel in OF_ATTENTION else None
    split = _attend_splits(slots, counts, new, sight, scored)
    output = _empty_output(new)
    finish(split, slots, counts, output, ranking)
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
        finish(split, slots, counts, output, None)
        return output, None
    attention = torch.empty(slots.shape[:3], dtype=torch.float32, device=output.device)
    finish(split, slots, counts, output, received, attention)
    return output, attention


def look(slots: SlotTensors, counts: StepCounts, new: NewTokens, sight: Sight) -> Tensor:
    """Attend to what is held after a step; see `Backend`."""
    split = _attend_splits(slots, counts, new, sight, None, joins=False)
    output = _empty_output(new)
    finish(split, slots, counts, output, None, joins=False)
    return output


def _attend_splits(
    slots: SlotTensors,
    counts: StepCounts,
    new: NewTokens,
    sight: Sight,
    scored: Literal["all", "unprotected"] | None,
    joins: bool = True,
) -> Splits:
    """Attend; logits are kept of the slots that are ``scored``.

    The new tokens join what is held, or their queries look alone.
    """
    batch, heads, length, head_dim = slots.shape
    group = new.queries.shape[1] // heads
    block_group = triton.next_power_of_2(group)
    listed = sight.listed
    in_part = listed is not None and listed.full is None
    names = listed.slots.shape[-1] if listed is not None else 0
    plan = plan_of(slots, group, names if in_part else length)
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
        *span_pointers(slots),
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
        IN_SLOTS=TRITON_DTYPE[_multiplied_in(slots.keys.itemsize == 1, new)],
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
        IN_COMPACT=TRITON_DTYPE[_multiplied_in(rounded, new)],
        num_warps=plan.warps,
        num_stages=plan.stages,
    )
    return Splits(logits, weighted, maxima, totals, plan)


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


def _empty_output(new: NewTokens) -> Tensor:
    return torch.empty(new.queries.shape, dtype=new.queries.dtype, device=new.queries.device)


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
    first_slot, room, gap = span(start_ptr, room_ptr, gap_ptr, pair, slots, SPANS)
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
                noted_as: tl.constexpr = last_queries_ptr.dtype.element_ty
                tl.store(noted_ptr, query.to(noted_as), mask=grouped)

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
