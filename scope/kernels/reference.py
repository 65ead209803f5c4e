"""A decode step over slots and the column sums of a prompt, in plain torch.

What a CPU runs, and what the Triton kernels are tested against.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from scope.kernels.folding import fold as fold
from scope.kernels.rounding import movable, restore_keys, restore_values, stored_as
from scope.kernels.tensors import (
    FREE,
    CompactTensors,
    Listed,
    NewTokens,
    Received,
    Sight,
    SlotTensors,
    StepCounts,
    by_worth_then_newest,
    mixed,
    reduce_group,
)

# Most query rows whose attention is summed up at once, and what a block of them may take. A logit,
# its probability in float32 and the rounded one are at most so many bytes.
_ROWS_PER_BLOCK = 256
_BYTES_PER_BLOCK = 2**28
_BYTES_PER_LOGIT = 12
# Most keys whose cosines with all others are looked at.
_KEYS_PER_BLOCK = 64

_FIRST, _LAST = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max


def attend(
    slots: SlotTensors,
    counts: StepCounts,
    new: NewTokens,
    sight: Sight,
    received: Received | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Append one token per row and attend to what is seen; see `Backend`."""
    new = new.turned
    listed, stored = sight.listed, new
    if slots.key_scale is not None:
        stored = replace(new, keys=slots.key_scale.codes(new.keys[:, :, None])[:, :, 0])
    if listed is not None:
        _list_new(listed, slots, counts, stored)
    _append(slots, counts, stored)
    return _attended(slots, counts, new.queries, sight, received)


def look(slots: SlotTensors, counts: StepCounts, new: NewTokens, sight: Sight) -> Tensor:
    """Attend to what is held after a step; see `Backend`."""
    return _attended(slots, counts, new.turned.queries, sight, None)[0]


def _attended(
    slots: SlotTensors,
    counts: StepCounts,
    queries: Tensor,
    sight: Sight,
    received: Received | None,
) -> tuple[Tensor, Tensor | None]:
    listed = sight.listed
    used = slots.first(counts.used)
    if listed is not None and listed.full is None:
        used = _taken(slots, listed)  # a row without a prompt may list a slot not yet used
    visible = used.positions != FREE
    if listed is not None and listed.full is not None:
        visible &= _named(listed.slots, counts.used) | (listed.full[:, None, None] != 0)
    if sight.sliding_window is not None:
        visible &= used.positions > (counts.position - sight.sliding_window)[:, None, None]
    keys = used.keys if slots.key_scale is None else slots.key_scale.restored(used.keys)
    keys, values = (part.to(queries.dtype) for part in (keys, used.values))
    if slots.compact is not None:
        beside = _restored(slots.compact, counts, sight, keys)
        keys, values, visible = (
            torch.cat(parts, dim=2) for parts in zip((keys, values, visible), beside, strict=True)
        )
    batch, heads, _, head_dim = keys.shape
    grouped = queries.view(batch, heads, -1, head_dim)
    logits = (grouped @ keys.transpose(2, 3)) * sight.scaling
    logits = logits.masked_fill(~visible[:, :, None], -torch.inf)
    probabilities = logits.softmax(dim=-1, dtype=torch.float32)
    output = (probabilities.to(values.dtype) @ values).view(batch, -1, head_dim)
    if received is None:
        return output, None
    probabilities = probabilities[..., : counts.used]
    return output, reduce_group(probabilities.to(received.dtype), received.reduction).float()


def _restored(
    compact: CompactTensors, counts: StepCounts, sight: Sight, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values ``[B, H, P, D]`` of what is held in less room, and where it is seen.

    Channels that are not stored are 0. ``like`` is ``[..., D]`` in the dtype wanted.
    """
    tokens, groups = compact.filled, compact.filled // compact.group
    every, head_dim, dtype = slice(None), like.shape[-1], like.dtype
    keys = restore_keys(compact.keys.row(every, tokens, groups), compact.key_bits, dtype)
    if compact.channels is not None:
        places = compact.channels.long()[:, :, None].expand_as(keys)
        keys = keys.new_zeros(*keys.shape[:-1], head_dim).scatter_(3, places, keys)
    codes = compact.values.row(every, tokens, tokens)
    values = restore_values(codes, compact.value_bits, head_dim, dtype)
    positions = compact.positions[:, :, :tokens]
    numbers = torch.arange(tokens, device=positions.device)
    visible = (positions != FREE) & (numbers < compact.count[:, None])[:, None]
    if sight.sliding_window is not None:
        visible &= positions > (counts.position - sight.sliding_window)[:, None, None]
    return keys, values, visible


def _list_new(listed: Listed, slots: SlotTensors, counts: StepCounts, new: NewTokens) -> None:
    """Put the new token's slot in its place in the list of a row that is not full.

    Copies of what is listed change in every row: those of a full one are brought anew.
    """
    place = (counts.newest - listed.since - 1).clamp(min=0) % listed.slots.shape[-1]
    place = place[:, None, None].expand(-1, listed.slots.shape[1], 1).long()
    slot = slots.vacant[..., None]
    if listed.full is not None:
        slot = listed.slots.gather(2, place).where(listed.full[:, None, None] != 0, slot)
    listed.slots.scatter_(2, place, slot)
    if listed.keys is not None and listed.values is not None:
        _put(listed.keys, place, new.keys)
        _put(listed.values, place, new.values)


def _taken(slots: SlotTensors, listed: Listed) -> SlotTensors:
    """Copies of the slots that are listed, as slots of their own."""
    keys, values, places = listed.keys, listed.values, listed.slots.clamp(min=0).long()
    if keys is None or values is None:
        keys, values = (_gathered(part, listed.slots) for part in (slots.keys, slots.values))
    return SlotTensors(
        keys,
        values,
        slots.positions.gather(2, places).masked_fill(listed.slots == FREE, FREE),
        slots.ranks.gather(2, places),
        slots.vacant,
    )


def _gathered(slots: Tensor, names: Tensor) -> Tensor:
    """Copies of the ``[B, H, S, D]`` slots with the names ``[B, H, K]``."""
    wide = names.clamp(min=0).long()[..., None].expand(-1, -1, -1, slots.shape[-1])
    return movable(slots).gather(2, wide).view(slots.dtype)


def _named(names: Tensor, count: int) -> Tensor:
    """Which of the first slots have these names: ``[B, H, count]``."""
    flags = names.new_zeros(*names.shape[:2], count + 1, dtype=torch.bool)
    known = (names != FREE) & (names < count)
    return flags.scatter_(2, names.long().where(known, count), True)[..., :count]


def _append(slots: SlotTensors, counts: StepCounts, new: NewTokens) -> None:
    slot = slots.vacant[..., None].long()
    _put(slots.keys, slot, new.keys)
    _put(slots.values, slot, new.values)
    slots.positions.scatter_(2, slot, counts.position[:, None, None].expand_as(slot))
    slots.ranks.scatter_(2, slot, counts.newest[:, None, None].expand_as(slot))
    if slots.last_queries is not None:
        place = (counts.newest % slots.last_queries.shape[2]).long()[:, None, None, None]
        query = new.queries[:, :, None].to(slots.last_queries.dtype)
        slots.last_queries.scatter_(2, place.expand_as(query), query)


def _put(there: Tensor, place: Tensor, states: Tensor) -> None:
    """Write ``[B, H, D]`` into ``[B, H, n, D]`` at the places ``[B, H, 1]``."""
    stored = stored_as(there.dtype, states[:, :, None])
    movable(there).scatter_(2, place[..., None].expand_as(stored), movable(stored))


def evict(slots: SlotTensors, counts: StepCounts, worth: Tensor | None, recent: int) -> None:
    """Free the slots of the least worthy tokens, and choose the next vacant one; see `Backend`."""
    if worth is None:  # no token has left, and each one's slot follows from its rank
        next_slot = counts.newest[:, None] + 1
        if slots.spans is None:
            next_slot = next_slot.clamp(max=slots.ranks.shape[-1] - 1)
        else:  # an idle row counts from 0, below its gap
            next_slot = (next_slot - slots.spans.gap).minimum(slots.spans.room - 1).clamp(min=0)
        slots.vacant.copy_(next_slot.expand_as(slots.vacant))
        return
    if counts.most_losses > 0:
        used = slots.first(counts.used)
        may_go = (used.ranks >= counts.protected[:, None, None]) & (
            used.ranks <= counts.newest[:, None, None] - recent
        )
        order = by_worth_then_newest(worth, used.ranks).masked_fill(~may_go, _LAST)
        victims = order.topk(counts.most_losses, largest=False).indices
        leaves = torch.full_like(victims, FREE, dtype=torch.int32)
        number = torch.arange(counts.most_losses, device=victims.device)
        due = (number < counts.losses[:, None])[:, None]
        for entries in (used.positions, used.ranks):
            entries.scatter_(2, victims, leaves.where(due, entries.gather(2, victims)))
    slots.vacant.copy_(slots.positions.argmin(dim=-1))


def fill(slots: SlotTensors, row: int, keys: Tensor, values: Tensor, positions: Tensor) -> None:
    """Start a row over with the tokens of a prompt; see `Backend`."""
    kept = positions.shape[1]
    if slots.key_scale is not None:
        keys = slots.key_scale.of(row).codes(keys)
    for there, states in ((slots.keys, keys), (slots.values, values)):
        _store(there[row, :, :kept], states)
    if slots.values.device == positions.device:  # only kernels read elsewhere, and no free slots
        # Free slots have weight 0, but 0 times what an overflow has left behind would be NaN.
        slots.values[row, :, kept:] = 0.0
    slots.positions[row] = slots.ranks[row] = FREE
    slots.positions[row, :, :kept] = positions.to(torch.int32)
    ranks = torch.arange(kept, dtype=torch.int32, device=positions.device)
    slots.ranks[row, :, :kept] = ranks.where(positions != FREE, FREE)
    slots.vacant[row] = kept


def _store(there: Tensor, states: Tensor) -> None:
    """Write states ``[H, P, D]``; into pinned memory head by head, which nobody waits for."""
    stored = stored_as(there.dtype, states)
    near = there.device == stored.device
    for slots, run in [(there, stored)] if near else zip(there, stored, strict=True):
        slots.copy_(run, non_blocking=True)


def choose(listed: Listed, full: Tensor, worth: Tensor, newest: Tensor) -> None:
    """List anew what full rows attend to; see `Backend`."""
    size, slot = listed.slots.shape[-1], torch.arange(worth.shape[-1], device=worth.device)
    there: Tensor = (worth != -torch.inf) & (slot <= newest[:, None, None])
    order = by_worth_then_newest(worth, slot).masked_fill(~there, _FIRST)
    best = order.topk(min(size, len(slot)), dim=-1)
    slots = best.indices.int().masked_fill(best.values == _FIRST, FREE).flip(-1)
    slots = functional.pad(slots, (size - slots.shape[-1], 0), value=FREE)
    is_full = full != 0
    listed.slots.copy_(slots.where(is_full[:, None, None], listed.slots))
    listed.since.copy_(newest.where(is_full, listed.since))


def bring(listed: Listed, full: Tensor, keys: Tensor, values: Tensor) -> None:
    """Copy what full rows list; see `Backend`."""
    is_full = (full != 0)[:, None, None, None]
    for near, far in ((listed.keys, keys), (listed.values, values)):
        if near is not None:
            brought = movable(_gathered(far, listed.slots))
            movable(near).copy_(brought.where(is_full, movable(near)))


def sample(scores: Tensor, keys: Tensor) -> Tensor:
    """A draw from the softmax of each row; see `scope.kernels.sample`.

    The largest of scores plus Gumbel noise, -log(-log(1 - u)). Of many tokens the one with a very
    small u wins, so u is made of all 32 bits of a number.
    """
    columns = mixed(torch.arange(scores.shape[1], device=scores.device))
    chance = mixed(columns + keys[:, None])
    uniform = ((chance.float() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)
    return (scores - (-torch.log1p(-uniform)).log()).argmax(dim=-1)


def column_sums(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    sliding_window: int | None,
    score_dtype: torch.dtype,
    first_row: int = 0,
    first_causal_row: int = 0,
    log_sum_exp: Tensor | None = None,
    squared: bool = False,
    lag: int = 0,
) -> Tensor:
    """Attention that every key receives from each query head; see `Backend`.

    In blocks of rows that take no more columns than they look at.
    """
    heads, length, head_dim = keys.shape
    num_queries = queries.shape[0]
    grouped = queries.view(heads, -1, length, head_dim)
    sums = grouped.new_zeros(heads, grouped.shape[1], length, dtype=torch.float32)
    columns = torch.arange(length, device=keys.device)
    block = _BYTES_PER_BLOCK // (_BYTES_PER_LOGIT * num_queries * length)
    block = min(max(block, 1), _ROWS_PER_BLOCK)
    for start in range(first_row, length, block):
        stop = min(start + block, length)
        end = length if start < first_causal_row else stop
        rows_queries = grouped[:, :, start:stop].flatten(1, 2)
        logits = (rows_queries @ keys[:, :end].transpose(1, 2)).mul_(scaling)
        rows = columns[start:stop, None]
        hidden = columns[:end] > rows
        if start < first_causal_row:
            hidden &= rows >= first_causal_row
        if sliding_window is not None:
            hidden |= columns[:end] <= rows - sliding_window
        logits = logits.view(heads, -1, stop - start, end).masked_fill_(hidden, -torch.inf)
        if log_sum_exp is None:
            probabilities = logits.softmax(dim=-1, dtype=torch.float32)
        else:
            normaliser = log_sum_exp[:, start:stop].reshape(*logits.shape[:3], 1)
            probabilities = (logits.float() - normaliser).exp()
        if lag:
            near = (columns[:end] > rows - lag) & (rows >= first_causal_row)
            probabilities = probabilities.masked_fill(near, 0.0)
        probabilities = probabilities.to(score_dtype)
        if squared:
            probabilities = probabilities.float().square_()
        sums[..., :end] += probabilities.sum(dim=2, dtype=torch.float32)
    return sums.flatten(0, 1)


def attention_sums(
    queries: Tensor,
    keys: Tensor,
    ranks: Tensor,
    last: Tensor,
    scaling: float,
    positions: Tensor | None = None,
    after: Tensor | None = None,
    largest: bool = False,
) -> Tensor:
    """Attention that every slot receives from each query head; see `Backend`."""
    sums = keys.new_zeros(*queries.shape[:2], keys.shape[2], dtype=torch.float32)
    for block, products in _products(queries, keys):
        seen = (ranks != FREE)[:, :, None] & (ranks[:, :, None] <= last[:, None, block, None])
        if positions is not None and after is not None:
            seen &= positions[:, :, None] > after[:, None, block, None]
        seen = seen.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
        lowest = torch.finfo(products.dtype).min
        shares = (products * scaling).masked_fill(~seen, lowest).softmax(dim=-1) * seen
        sums = sums.maximum(shares.amax(dim=2)) if largest else sums + shares.sum(dim=2)
    return sums


def product_sums(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Products with every key, and their squares, added up; see `Backend`."""
    sums = keys.new_zeros(*queries.shape[:2], keys.shape[2], dtype=torch.float32)
    squares = torch.zeros_like(sums)
    for _, products in _products(queries, keys):
        sums += products.sum(dim=2)
        squares += products.square().sum(dim=2)
    return sums, squares


def _products(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """``[B, H_q, n, S]`` float32 of n queries after the other n, as many as the keys' numbers."""
    batch, num_queries, count, head_dim = queries.shape
    heads, slots = keys.shape[1:3]
    most = max(1, head_dim * heads // num_queries)
    for start in range(0, count, most):
        block = slice(start, min(start + most, count))
        rows = queries[:, :, block].to(keys.dtype).reshape(batch, heads, -1, head_dim)
        products = (rows @ keys.transpose(2, 3)).float()
        yield block, products.view(batch, num_queries, -1, slots)


def cosine_sums(keys: Tensor, ranks: Tensor, similar: float) -> Tensor:
    """Sum of every key's cosines with the others but for some; see `Backend`.

    All are summed at once; a block of keys after the other then takes back what does not count.
    """
    unit = functional.normalize(keys.float(), dim=-1) * (ranks != FREE)[..., None]
    sums = (unit * (unit.sum(dim=2, keepdim=True) - unit)).sum(dim=-1)
    for start in range(0, ranks.shape[-1], _KEYS_PER_BLOCK):
        block = slice(start, start + _KEYS_PER_BLOCK)
        cosines = unit[:, :, block] @ unit.transpose(2, 3)
        others = ranks[:, :, block, None] != ranks[:, :, None]
        ranked = ranks[:, :, None].where((cosines > similar) & others, FREE)
        newest, place = ranked.max(dim=-1, keepdim=True)
        spared = cosines.gather(3, place).masked_fill(newest == FREE, 0.0)
        sums.scatter_add_(2, place[..., 0], -spared[..., 0])
    return sums
