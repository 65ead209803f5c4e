# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""What a few queries of each head make of all keys in slots, added up over the queries.

Their products with the keys, which are w times as many as there are query heads and slots, are
never written. Attention takes two kernels: the first goes along the slots for every block of
queries and keeps their log-sum-exp, the second along the queries for every block of slots.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from scope.kernels.tensors import FREE
from scope.kernels.triton.column_sums import tiling

_FREE = tl.constexpr(FREE)
# Masks a product, as in `column_sums`: what was collected before anything is seen is set to 0.
_HIDDEN = tl.constexpr(-1e30)
_MOST_QUERIES = 64


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
    batch, heads, slots, head_dim = keys.shape
    num_queries, count = queries.shape[1:3]
    group = num_queries // heads
    stationary, streamed, options = tiling(keys.dtype)
    rows = min(stationary, max(16, triton.next_power_of_2(group * count)))
    log_sum_exp = torch.empty(batch, num_queries, count, device=keys.device)
    sums = torch.empty(batch, num_queries, slots, device=keys.device)
    arguments = (
        queries.contiguous(),
        keys.contiguous(),
        ranks.contiguous(),
        last.contiguous(),
        None if positions is None else positions.contiguous(),
        None if after is None else after.contiguous(),
        log_sum_exp,
        count,
        slots,
        scaling * math.log2(math.e),
    )
    constants = {"GROUP": group, "HEAD_DIM": head_dim, **options}
    _log_sum_exp[triton.cdiv(group * count, rows), heads, batch](
        *arguments, ROWS=rows, COLUMNS=streamed, **constants
    )
    how = "largest" if largest else "sum"
    _add_up[triton.cdiv(slots, stationary), heads, batch](
        sums, None, *arguments, HOW=how, ROWS=stationary, COLUMNS=_columns(count), **constants
    )
    return sums


def product_sums(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Products with every key, and their squares, added up; see `Backend`."""
    batch, heads, slots, head_dim = keys.shape
    num_queries, count = queries.shape[1:3]
    stationary, _, options = tiling(keys.dtype)
    sums = torch.empty(batch, num_queries, slots, device=keys.device)
    squares = torch.empty_like(sums)
    _add_up[triton.cdiv(slots, stationary), heads, batch](
        sums,
        squares,
        queries.contiguous(),
        keys.contiguous(),
        *(None,) * 5,
        count,
        slots,
        1.0,
        HOW="moments",
        GROUP=num_queries // heads,
        HEAD_DIM=head_dim,
        ROWS=stationary,
        COLUMNS=_columns(count),
        **options,
    )
    return sums, squares


def _columns(count: int) -> int:
    """Queries that a block of slots meets at once."""
    return min(_MOST_QUERIES, max(16, triton.next_power_of_2(count)))


@triton.jit
def _log_sum_exp(
    queries_ptr,
    keys_ptr,
    ranks_ptr,
    last_ptr,
    positions_ptr,
    after_ptr,
    log_sum_exp_ptr,
    count,
    slots,
    scale,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Base-2 logarithm of the sum of powers of 2, for a block of one head's queries."""
    pair = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    d = tl.arange(0, HEAD_DIM)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < GROUP * count
    query = _query(queries_ptr, keys_ptr, pair * GROUP * count + row, inside, d, HEAD_DIM)
    last, after = _bounds(last_ptr, after_ptr, tl.program_id(2) * count + row % count, inside)
    maximum = tl.full((ROWS,), _HIDDEN, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, slots, COLUMNS):
        slot = first + tl.arange(0, COLUMNS)
        place = pair * slots + slot
        key = tl.load(
            keys_ptr + place[:, None] * HEAD_DIM + d[None, :],
            mask=(slot < slots)[:, None],
            other=0.0,
        )
        rank, position = _places(ranks_ptr, positions_ptr, place, slot < slots)
        seen = (rank != _FREE)[None, :] & (rank[None, :] <= last[:, None])
        if positions_ptr is not None:
            seen &= position[None, :] > after[:, None]
        products = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        products = tl.where(seen, products, _HIDDEN)
        highest = tl.maximum(maximum, tl.max(products, axis=1))
        powers = tl.exp2(products - highest[:, None])
        total = total * tl.exp2(maximum - highest) + tl.sum(powers, axis=1)
        maximum = highest
    place = log_sum_exp_ptr + pair * GROUP * count + row
    tl.store(place, maximum + tl.log2(total), mask=inside)


@triton.jit
def _add_up(
    sums_ptr,
    squares_ptr,
    queries_ptr,
    keys_ptr,
    ranks_ptr,
    last_ptr,
    positions_ptr,
    after_ptr,
    log_sum_exp_ptr,
    count,
    slots,
    scale,
    HOW: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """What a block of one head's slots gets from each of its query heads.

    HOW is ``sum`` or ``largest`` of attention, or ``moments`` for products and their squares.
    """
    pair = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    d = tl.arange(0, HEAD_DIM)
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = slot < slots
    place = pair * slots + slot
    key = tl.load(keys_ptr + place[:, None] * HEAD_DIM + d[None, :], mask=there[:, None], other=0.0)
    if HOW != "moments":
        rank, position = _places(ranks_ptr, positions_ptr, place, there)
    for member in range(GROUP):
        head = pair * GROUP + member
        sums = tl.zeros((ROWS,), tl.float32)
        squares = tl.zeros((ROWS,), tl.float32)
        for first in range(0, count, COLUMNS):
            number = first + tl.arange(0, COLUMNS)
            inside = number < count
            query = _query(queries_ptr, keys_ptr, head * count + number, inside, d, HEAD_DIM)
            products = tl.dot(key, tl.trans(query), input_precision="ieee") * scale
            if HOW == "moments":
                sums += tl.sum(products, axis=1)
                squares += tl.sum(products * products, axis=1)
            else:
                row = tl.program_id(2) * count + number
                last, after = _bounds(last_ptr, after_ptr, row, inside)
                seen = (rank != _FREE)[:, None] & (rank[:, None] <= last[None, :])
                if positions_ptr is not None:
                    seen &= position[:, None] > after[None, :]
                own = tl.load(log_sum_exp_ptr + head * count + number, mask=inside, other=0.0)
                shares = tl.exp2(tl.where(seen, products - own[None, :], _HIDDEN))
                if HOW == "largest":
                    sums = tl.maximum(sums, tl.max(shares, axis=1))
                else:
                    sums += tl.sum(shares, axis=1)
        tl.store(sums_ptr + head * slots + slot, sums, mask=there)
        if HOW == "moments":
            tl.store(squares_ptr + head * slots + slot, squares, mask=there)


@triton.jit
def _query(queries_ptr, keys_ptr, row, inside, d, HEAD_DIM: tl.constexpr):
    """Some queries in the type of the keys, 0 for those that there are not."""
    query = tl.load(
        queries_ptr + row[:, None] * HEAD_DIM + d[None, :], mask=inside[:, None], other=0.0
    )
    return query.to(keys_ptr.dtype.element_ty)


@triton.jit
def _bounds(last_ptr, after_ptr, row, inside):
    """The last rank that queries see, and the position after which they do."""
    last = tl.load(last_ptr + row, mask=inside, other=_FREE)
    after = last
    if after_ptr is not None:
        after = tl.load(after_ptr + row, mask=inside, other=0)
    return last, after


@triton.jit
def _places(ranks_ptr, positions_ptr, place, there):
    """Ranks of some slots, and where it matters their positions."""
    rank = tl.load(ranks_ptr + place, mask=there, other=_FREE)
    position = rank
    if positions_ptr is not None:
        position = tl.load(positions_ptr + place, mask=there, other=_FREE)
    return rank, position
