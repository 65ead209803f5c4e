"""Where the middle of each prompt is held in less room, beside a layer's slots."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from scope.kernels.rounding import PARTS, Codes, round_keys, round_values
from scope.kernels.tensors import FREE, CompactTensors
from scope.methods.prompt import Entries
from scope.methods.storage import Storage
from scope.methods.think import best_channels


def empty_compact(
    like: Tensor, batch_size: int, heads: int, tokens: int, storage: Storage
) -> CompactTensors:
    """Room for so many tokens of each head, whole groups; ``like`` is ``[..., D]``."""
    head_dim, group = like.shape[-1], storage.group
    key_channels = storage.key_channels(head_dim)
    key_bits, value_bits = storage.bits
    rows = batch_size, heads

    def codes(bits: int | None, width: int, groups: tuple[int, int]) -> Codes:
        if bits is None:
            return Codes.whole(like.new_zeros(*rows, tokens, width))
        width = sum(width * part // 8 for part in PARTS[bits])
        packed = like.new_zeros(*rows, tokens, width, dtype=torch.uint8)
        return Codes(packed, like.new_zeros(*rows, *groups, 2, dtype=torch.float16))

    pruned = storage.pruned_channels is not None
    return CompactTensors(
        keys=codes(key_bits, key_channels, (tokens // group, key_channels)),
        values=codes(value_bits, head_dim, (tokens, head_dim // min(group, head_dim))),
        key_bits=key_bits,
        value_bits=value_bits,
        group=group,
        channels=like.new_zeros(*rows, key_channels, dtype=torch.int32) if pruned else None,
        positions=torch.full((*rows, tokens), FREE, dtype=torch.int32, device=like.device),
        count=torch.zeros(batch_size, dtype=torch.int32, device=like.device),
        filled=0,
    )


def write_compact(
    layers: Sequence[CompactTensors], storage: Storage, row: int, entries: Entries, queries: Tensor
) -> tuple[list[CompactTensors], Entries]:
    """Store the middle of what is held of a row's prompt; what stays whole is given back.

    Args:
        layers: one, or several, whose heads are those of the entries and queries in their order.
        storage: how.
        row: which.
        entries: all that is held, ``[N H, P, D]``.
        queries: ``[N H_q, L, D]`` of the prompt.
    """
    count = int(storage.compact(np.array(entries.positions.shape[1])))
    for compact in layers:
        compact.count[row] = count
    written = [replace(one, filled=max(one.filled, count)) for one in layers]
    if count == 0:
        return written, entries
    middle, rest = entries.split(storage.whole_sinks, count)
    like, keys, parts = layers[0], middle.keys, len(layers)
    group, head_dim = like.group, keys.shape[-1]
    if channels := [one.channels for one in layers if one.channels is not None]:
        width = channels[0].shape[-1]
        best = best_channels(queries[:, -storage.pruning_queries :], entries, width)
        keys = keys.gather(2, best[:, None].expand(-1, count, -1))
        for there, own in zip(channels, best.chunk(parts), strict=True):
            there[row] = own
    key_codes = round_keys(keys, like.key_bits, group).chunk(parts)
    value_codes = round_values(middle.values, like.value_bits, min(group, head_dim)).chunk(parts)
    positions = middle.positions.to(torch.int32).chunk(parts)
    for place, compact in enumerate(layers):
        compact.keys.row(row, count, count // group).copy_(key_codes[place])
        compact.values.row(row, count, count).copy_(value_codes[place])
        compact.positions[row, :, :count] = positions[place]
    return written, rest
