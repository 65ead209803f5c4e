"""Where the middle of each prompt is held in few bits, beside a layer's slots."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from scope.kernels.rounding import PARTS, Codes, round_keys, round_values
from scope.kernels.tensors import FREE, RoundedTensors
from scope.methods.prompt import Entries
from scope.methods.storage import Storage


def empty_rounded(
    like: Tensor, batch_size: int, heads: int, tokens: int, storage: Storage
) -> RoundedTensors:
    """Room for so many tokens of each head, whole groups; ``like`` is ``[..., D]``."""
    head_dim, group = like.shape[-1], storage.rounding_group
    key_bits, value_bits = storage.bits
    rows = batch_size, heads

    def codes(bits: int, groups: tuple[int, int]) -> Codes:
        width = sum(head_dim * part // 8 for part in PARTS[bits])
        packed = like.new_zeros(*rows, tokens, width, dtype=torch.uint8)
        scale = like.new_zeros(*rows, *groups, dtype=torch.float16)
        return Codes(packed, scale, scale.clone())

    return RoundedTensors(
        keys=codes(key_bits, (tokens // group, head_dim)),
        values=codes(value_bits, (tokens, head_dim // min(group, head_dim))),
        key_bits=key_bits,
        value_bits=value_bits,
        group=group,
        positions=torch.full((*rows, tokens), FREE, dtype=torch.int32, device=like.device),
        count=torch.zeros(batch_size, dtype=torch.int32, device=like.device),
        filled=0,
    )


def write_rounded(
    rounded: RoundedTensors, storage: Storage, row: int, entries: Entries
) -> tuple[RoundedTensors, Entries]:
    """Store the middle of what is held of a row's prompt; what stays whole is given back."""
    count = int(storage.rounded(np.array(entries.positions.shape[1])))
    rounded.count[row] = count
    rounded = replace(rounded, filled=max(rounded.filled, count))
    if count == 0:
        return rounded, entries
    start, stop = storage.whole_sinks, storage.whole_sinks + count
    group, head_dim = rounded.group, entries.keys.shape[-1]
    keys = round_keys(entries.keys[:, start:stop], rounded.key_bits, group)
    values = round_values(entries.values[:, start:stop], rounded.value_bits, min(group, head_dim))
    rounded.keys.row(row, count, count // group).copy_(keys)
    rounded.values.row(row, count, count).copy_(values)
    rounded.positions[row, :, :count] = entries.positions[:, start:stop].to(torch.int32)
    whole = [
        torch.cat([part[:, :start], part[:, stop:]], dim=1)
        for part in (entries.keys, entries.values, entries.positions)
    ]
    return rounded, Entries(*whole)
