# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""Column sums of a prompt's attention matrix in two Triton kernels; the matrix itself never exists.

The first goes along the keys for every block of query rows and keeps their log-sum-exp; the second
goes along the rows for every block of keys and adds up their probabilities. Both leave out what no
row of a block may look at, and only check tile by tile where some may and some may not. A number is
written by one program alone, so the same prompt always gives the same sums. Where the prompt's own
attention has left its log-sum-exp, the first is not needed.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Masks a product. It is finite, so that a row that sees nothing yet has no infinity to subtract;
# what such a row collects is multiplied by 0 at the first key that it does see.
_HIDDEN = tl.constexpr(-1e30)


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
    """Attention that every key receives from each query head; see `Backend`."""
    num_queries, length, head_dim = queries.shape
    sums = queries.new_empty(num_queries, length, dtype=torch.float32)
    given = log_sum_exp is not None
    in_base_2 = log_sum_exp * math.log2(math.e) if given else torch.empty_like(sums)
    stationary, streamed, options = tiling(keys.dtype)
    arguments = (
        queries,
        keys,
        in_base_2,
        *queries.stride()[:2],
        *keys.stride()[:2],
        length,
        first_row,
        first_causal_row,
        scaling * math.log2(math.e),
    )
    constants = {
        "GROUP": num_queries // keys.shape[0],
        "WINDOW": sliding_window or 0,
        "HEAD_DIM": head_dim,
        **options,
    }
    with torch.cuda.device_of(keys):  # a model may be spread over several
        if not given:
            _log_sum_exp[triton.cdiv(length - first_row, stationary), num_queries](
                *arguments, ROWS=stationary, COLUMNS=streamed, **constants
            )
        _sum_columns[triton.cdiv(length, stationary), num_queries](
            sums,
            *arguments,
            ROWS=streamed,
            COLUMNS=stationary,
            SCORE_DTYPE=getattr(tl, str(score_dtype).removeprefix("torch.")),
            SQUARED=squared,
            LAG=lag,
            **constants,
        )
    return sums


def tiling(dtype: torch.dtype) -> tuple[int, int, dict[str, int]]:
    """Rows of the block that a program keeps, rows of those that it streams, launch options."""
    if dtype == torch.float32:  # without tensor cores
        return 64, 16, {"num_warps": 4, "num_stages": 2}
    return 128, 64, {"num_warps": 4, "num_stages": 3}


@triton.jit(do_not_specialize=["length", "first_row", "first_causal_row"])
def _log_sum_exp(
    queries_ptr,
    keys_ptr,
    log_sum_exp_ptr,
    query_head_stride,
    query_stride,
    key_head_stride,
    key_stride,
    length,
    first_row,
    first_causal_row,
    scale,
    GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Base-2 logarithm of every row's sum of powers of 2."""
    head = tl.program_id(1).to(tl.int64)
    queries_ptr += head * query_head_stride
    keys_ptr += head // GROUP * key_head_stride
    # The last rows look at most keys, so they start first.
    first = first_row + (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    query = _load(queries_ptr, query_stride, first, length, ROWS, HEAD_DIM, False)
    # Some row sees something of the keys from `start` to `end`; every row sees all of the keys from
    # `whole_start` to `whole_end`.
    start, whole_start = 0, 0
    if WINDOW:
        start = tl.maximum(first - WINDOW + 1, 0)
        whole_start = start + _up(first + ROWS - WINDOW - start, COLUMNS)
    end = tl.where(first < first_causal_row, length, tl.minimum(first + ROWS, length))
    seen_by_all = tl.maximum(first, first_causal_row) + 1
    seen_by_all = tl.where(first + ROWS <= first_causal_row, length, seen_by_all)
    seen_by_all = tl.minimum(seen_by_all, length)
    whole_end = whole_start + _down(seen_by_all - whole_start, COLUMNS)
    maximum = tl.full((ROWS,), _HIDDEN, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    bounds = (start, whole_start, whole_end, end)
    for stretch in tl.static_range(0 if WINDOW else 1, 3):
        for column in range(bounds[stretch], tl.minimum(bounds[stretch + 1], end), COLUMNS):
            maximum, total = _add_columns(
                query, keys_ptr, key_stride, first, column, length, first_causal_row, scale,
                maximum, total, WINDOW, HEAD_DIM, ROWS, COLUMNS, stretch == 1,
            )  # fmt: skip
    row = first + tl.arange(0, ROWS)
    tl.store(log_sum_exp_ptr + head * length + row, maximum + tl.log2(total), mask=row < length)


@triton.jit
def _add_columns(
    query, keys_ptr, key_stride, first_row, first_column, length, first_causal_row, scale,
    maximum, total,
    WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Take a block of keys into the running maximum and sum of each row."""
    key = _load(keys_ptr, key_stride, first_column, length, COLUMNS, HEAD_DIM, WHOLE)
    products = tl.dot(query, tl.trans(key), input_precision="ieee")
    if not WHOLE:
        row = first_row + tl.arange(0, ROWS)[:, None]
        column = first_column + tl.arange(0, COLUMNS)[None, :]
        visible = _visible(row, column, length, first_causal_row, WINDOW, 0)
        products = tl.where(visible, products, _HIDDEN)
    highest = tl.maximum(maximum, tl.max(products, axis=1) * scale)
    total *= tl.exp2(maximum - highest)
    return highest, total + tl.sum(tl.exp2(products * scale - highest[:, None]), axis=1)


@triton.jit(do_not_specialize=["length", "first_row", "first_causal_row"])
def _sum_columns(
    sums_ptr,
    queries_ptr,
    keys_ptr,
    log_sum_exp_ptr,
    query_head_stride,
    query_stride,
    key_head_stride,
    key_stride,
    length,
    first_row,
    first_causal_row,
    scale,
    GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SCORE_DTYPE: tl.constexpr,
    SQUARED: tl.constexpr,
    LAG: tl.constexpr,
):
    """Sum of every column's probabilities, or of their squares."""
    head = tl.program_id(1).to(tl.int64)
    queries_ptr += head * query_head_stride
    keys_ptr += head // GROUP * key_head_stride
    log_sum_exp_ptr += head * length
    # The first columns are seen by most rows, so starting in order starts with the longest.
    first = tl.program_id(0) * COLUMNS
    key = _load(keys_ptr, key_stride, first, length, COLUMNS, HEAD_DIM, False)
    # As in `_log_sum_exp`, with rows and columns changing places. After rows that look at the whole
    # prompt, every tile of causal rows is masked: the published code has a few of them only.
    end, seeing_all = length, length
    if WINDOW:
        end = tl.minimum(first + COLUMNS - 1 + WINDOW, length)
        seeing_all = tl.minimum(first + WINDOW, length)
    if first_row < first_causal_row:
        start = first_row
        whole_start = first_row
        seeing_all = tl.minimum(seeing_all, first_causal_row)
    else:
        start = tl.maximum(first_row, first + LAG)
        whole_start = start + _up(first + LAG + COLUMNS - 1 - start, ROWS)
    whole_end = whole_start + _down(seeing_all - whole_start, ROWS)
    sums = tl.zeros((COLUMNS,), tl.float32)
    bounds = (start, whole_start, whole_end, end)
    for stretch in tl.static_range(3):
        for row in range(bounds[stretch], tl.minimum(bounds[stretch + 1], end), ROWS):
            sums = _add_rows(
                key, queries_ptr, query_stride, log_sum_exp_ptr, row, first, length,
                first_causal_row, scale, sums,
                WINDOW, HEAD_DIM, ROWS, COLUMNS, SCORE_DTYPE, SQUARED, LAG, stretch == 1,
            )  # fmt: skip
    column = first + tl.arange(0, COLUMNS)
    tl.store(sums_ptr + head * length + column, sums, mask=column < length)


@triton.jit
def _add_rows(
    key, queries_ptr, query_stride, log_sum_exp_ptr, first_row, first_column, length,
    first_causal_row, scale, sums,
    WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    SCORE_DTYPE: tl.constexpr, SQUARED: tl.constexpr, LAG: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Add to each column what a block of rows gives it.

    The tile is transposed, so that sums run along a row of it: inside a thread, not between warps.
    """
    query = _load(queries_ptr, query_stride, first_row, length, ROWS, HEAD_DIM, WHOLE)
    row = first_row + tl.arange(0, ROWS)
    log_sum_exp = tl.load(log_sum_exp_ptr + row, mask=row < length, other=0.0)
    products = tl.dot(key, tl.trans(query), input_precision="ieee")
    if not WHOLE:
        column = first_column + tl.arange(0, COLUMNS)[:, None]
        visible = _visible(row[None, :], column, length, first_causal_row, WINDOW, LAG)
        products = tl.where(visible, products, _HIDDEN)
    probabilities = tl.exp2(products * scale - log_sum_exp[None, :])
    probabilities = probabilities.to(SCORE_DTYPE).to(tl.float32)
    if SQUARED:
        probabilities *= probabilities
    return sums + tl.sum(probabilities, axis=1)


@triton.jit
def _visible(row, column, length, first_causal_row, WINDOW: tl.constexpr, LAG: tl.constexpr):
    """Whether a row that exists may look at a column that exists, so far before it."""
    visible = (column + LAG <= row) | (row < first_causal_row)
    visible &= (row < length) & (column < length)
    if WINDOW:
        visible &= column > row - WINDOW
    return visible


@triton.jit
def _load(
    states_ptr, stride, first, length,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Rows of ``[L, D]`` from ``first`` on; beyond the end, the last one again."""
    row = tl.arange(0, ROWS)
    if not WHOLE:
        row = tl.minimum(row, length - 1 - first)
    states_ptr += tl.cast(first, tl.int64) * stride
    return tl.load(states_ptr + row[:, None] * stride + tl.arange(0, HEAD_DIM)[None, :])


@triton.jit
def _up(number, multiple: tl.constexpr):
    """The next multiple of a number above 0, else 0."""
    return tl.cdiv(tl.maximum(number, 0), multiple) * multiple


@triton.jit
def _down(number, multiple: tl.constexpr):
    """The last multiple up to a number above 0, else 0."""
    return tl.maximum(number, 0) // multiple * multiple
