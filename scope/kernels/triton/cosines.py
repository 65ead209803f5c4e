# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""How similar keys are to one another, in two Triton kernels; the matrix of cosines never exists.

The sum of a key's cosines with all others is its product with the sum of the unit keys, which the
first makes. The second looks for the newest of those similar to each key, which takes all products:
along the keys for every block of them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from scope.kernels.tensors import FREE
from scope.kernels.triton.column_sums import tiling

_FREE = tl.constexpr(FREE)
# Cosines are added up as whole numbers of so many to 1, which have the same sum in any order.
_UNITS = tl.constexpr(2.0**32)


def cosine_sums(keys: Tensor, ranks: Tensor, similar: float) -> Tensor:
    """Sum of every key's cosines with the others but for some; see `Backend`."""
    batch, heads, slots, head_dim = keys.shape
    stationary, streamed, options = tiling(keys.dtype)
    norms, sums = (torch.empty(ranks.shape, device=keys.device) for _ in range(2))
    total = torch.empty(batch, heads, head_dim, device=keys.device)
    spared = torch.zeros(ranks.shape, dtype=torch.int64, device=keys.device)
    keys, ranks = keys.contiguous(), ranks.contiguous()
    _sum_directions[heads, batch](
        keys, ranks, norms, total, slots, HEAD_DIM=head_dim, BLOCK=streamed
    )
    _add_cosines[triton.cdiv(slots, stationary), heads, batch](
        keys,
        ranks,
        norms,
        total,
        sums,
        spared,
        slots,
        similar,
        HEAD_DIM=head_dim,
        ROWS=stationary,
        COLUMNS=streamed,
        **options,
    )
    return sums - spared / _UNITS.value


@triton.jit
def _sum_directions(
    keys_ptr, ranks_ptr, norms_ptr, total_ptr, slots, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr
):
    """The norms of one head's keys, and the sum of what they are divided by them."""
    pair = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    d = tl.arange(0, HEAD_DIM)
    total = tl.zeros((HEAD_DIM,), tl.float32)
    for first in range(0, slots, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        place = pair * slots + slot
        held = tl.load(ranks_ptr + place, mask=slot < slots, other=_FREE) != _FREE
        key = tl.load(
            keys_ptr + place[:, None] * HEAD_DIM + d[None, :], mask=held[:, None], other=0.0
        )
        key = key.to(tl.float32)
        norm = tl.sqrt(tl.sum(key * key, axis=1))
        tl.store(norms_ptr + place, norm, mask=slot < slots)
        total += tl.sum(key / tl.maximum(norm, 1e-12)[:, None], axis=0)
    tl.store(total_ptr + pair * HEAD_DIM + d, total)


@triton.jit
def _add_cosines(
    keys_ptr,
    ranks_ptr,
    norms_ptr,
    total_ptr,
    sums_ptr,
    spared_ptr,
    slots,
    similar,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Every cosine of a block of one head's keys, and which of them are left out where."""
    pair = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    keys_ptr += pair * slots * HEAD_DIM
    ranks_ptr += pair * slots
    norms_ptr += pair * slots
    spared_ptr += pair * slots
    d = tl.arange(0, HEAD_DIM)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < slots
    rank = tl.load(ranks_ptr + row, mask=inside, other=_FREE)
    norm = tl.load(norms_ptr + row, mask=inside, other=0.0)
    key = tl.load(keys_ptr + row[:, None] * HEAD_DIM + d[None, :], mask=inside[:, None], other=0.0)

    newest = tl.full((ROWS,), _FREE, tl.int32)
    place = tl.zeros((ROWS,), tl.int32)
    for first in range(0, slots, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        other_rank = tl.load(ranks_ptr + column, mask=column < slots, other=_FREE)
        other_norm = tl.load(norms_ptr + column, mask=column < slots, other=0.0)
        other = tl.load(
            keys_ptr + column[:, None] * HEAD_DIM + d[None, :],
            mask=(column < slots)[:, None],
            other=0.0,
        )
        products = tl.dot(key, tl.trans(other), input_precision="ieee")
        is_similar = products > norm[:, None] * (similar * other_norm)[None, :]
        is_similar &= other_rank[None, :] != rank[:, None]
        ranked = tl.where(is_similar, other_rank[None, :], _FREE)
        newest_here = tl.max(ranked, axis=1)
        place_here = tl.max(tl.where(ranked == newest_here[:, None], column[None, :], 0), axis=1)
        place = tl.where(newest_here > newest, place_here, place)
        newest = tl.maximum(newest, newest_here)

    unit = tl.where((rank != _FREE)[:, None], key.to(tl.float32), 0.0)
    unit /= tl.maximum(norm, 1e-12)[:, None]
    rest = tl.load(total_ptr + pair * HEAD_DIM + d)[None, :] - unit
    tl.store(sums_ptr + pair * slots + row, tl.sum(unit * rest, axis=1), mask=inside)

    spares = newest != _FREE
    other = tl.load(
        keys_ptr + place[:, None] * HEAD_DIM + d[None, :], mask=spares[:, None], other=0.0
    )
    other_norm = tl.load(norms_ptr + place, mask=spares, other=1.0)
    cosine = tl.sum(unit * other.to(tl.float32), axis=1) / other_norm
    tl.atomic_add(spared_ptr + place, (cosine * _UNITS).to(tl.int64), mask=spares)
