# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""A prompt's tokens into the slots of a row, in one launch."""

import triton
import triton.language as tl
from torch import Tensor

from scope.kernels import reference
from scope.kernels.tensors import FREE, SlotTensors

_BLOCK = 32
_FREE = tl.constexpr(FREE)


def fill(slots: SlotTensors, row: int, keys: Tensor, values: Tensor, positions: Tensor) -> None:
    """Start a row over; see `Backend`. What is not as wide as the slots, torch converts."""
    kept, width = positions.shape[1], slots.positions.shape[2]
    if (
        slots.spans is not None
        or slots.keys.dtype != keys.dtype
        or slots.keys.device != positions.device
    ):
        reference.fill(slots, row, keys, values, positions)
        return
    _fill[triton.cdiv(width, _BLOCK), positions.shape[0]](
        slots.keys,
        slots.values,
        slots.positions,
        slots.ranks,
        slots.vacant,
        keys,
        values,
        positions,
        *keys.stride()[:2],
        *values.stride()[:2],
        *positions.stride(),
        row,
        width,
        kept,
        HEAD_DIM=keys.shape[2],
        BLOCK=_BLOCK,
    )


@triton.jit(do_not_specialize=["position_head_stride", "row", "kept"])
def _fill(
    keys_ptr,
    values_ptr,
    positions_ptr,
    ranks_ptr,
    vacant_ptr,
    new_keys_ptr,
    new_values_ptr,
    new_positions_ptr,
    key_head_stride,
    key_stride,
    value_head_stride,
    value_stride,
    position_head_stride,
    position_stride,
    row,
    width,
    kept,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    own = row * tl.num_programs(1) + head
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists, taken = slot < width, slot < kept
    new_positions_ptr += head * position_head_stride + slot.to(tl.int64) * position_stride
    position = tl.load(new_positions_ptr, mask=taken, other=_FREE).to(tl.int32)
    tl.store(positions_ptr + own * width + slot, position, mask=exists)
    rank = tl.where(position == _FREE, _FREE, slot)
    tl.store(ranks_ptr + own * width + slot, rank, mask=exists)
    if tl.program_id(0) == 0:
        tl.store(vacant_ptr + own, kept)
    d = tl.arange(0, HEAD_DIM)[None, :]
    token, exists, taken = slot[:, None].to(tl.int64), exists[:, None], taken[:, None]
    places = (own * width + token) * HEAD_DIM + d
    keys = tl.load(new_keys_ptr + head * key_head_stride + token * key_stride + d, mask=taken)
    tl.store(keys_ptr + places, keys, mask=taken)
    new_values_ptr += head * value_head_stride
    values = tl.load(new_values_ptr + token * value_stride + d, mask=taken, other=0.0)
    tl.store(values_ptr + places, values, mask=exists)
