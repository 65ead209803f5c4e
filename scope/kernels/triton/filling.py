# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""A prompt's tokens into the slots of a row, in one launch for a layer or for all of them."""

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from scope.kernels import reference
from scope.kernels.tensors import FREE, SlotTensors

_BLOCK = 32
_FREE = tl.constexpr(FREE)


def fill(slots: SlotTensors, row: int, keys: Tensor, values: Tensor, positions: Tensor) -> None:
    """Start a row over; see `Backend`. What is not as wide as the slots, torch converts."""
    heads, kept = positions.shape
    width = slots.positions.shape[2]
    if (
        slots.spans is not None
        or slots.keys.dtype != keys.dtype
        or slots.keys.device != positions.device
    ):
        reference.fill(slots, row, keys, values, positions)
        return
    _fill[triton.cdiv(width, _BLOCK), heads](
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


def filler(
    slots: Sequence[SlotTensors], draws: Sequence[Tensor]
) -> Callable[[int, Tensor, Tensor, Tensor, Tensor], None]:
    """What fills the slots of several layers; see `FusingBackend`."""
    tensors = [
        (one.keys, one.values, one.positions, one.ranks, one.vacant, draw)
        for one, draw in zip(slots, draws, strict=True)
    ]
    addresses = torch.tensor(
        [[part.data_ptr() for part in layer] for layer in tensors], device=draws[0].device
    )
    widest = max(one.positions.shape[2] for one in slots)
    widths = torch.tensor([one.positions.shape[2] for one in slots], device=addresses.device)

    def fill_layers(
        row: int, keys: Tensor, values: Tensor, positions: Tensor, draw: Tensor
    ) -> None:
        layers, heads, kept = positions.shape
        _fill_layers[triton.cdiv(widest, _BLOCK), heads, layers](
            addresses,
            widths,
            draw,
            keys,
            values,
            positions,
            *keys.stride()[:3],
            *values.stride()[:3],
            *positions.stride(),
            row,
            kept,
            HEAD_DIM=keys.shape[3],
            BLOCK=_BLOCK,
        )

    return fill_layers


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
    _fill_head(
        keys_ptr,
        values_ptr,
        positions_ptr,
        ranks_ptr,
        vacant_ptr,
        new_keys_ptr + head * key_head_stride,
        new_values_ptr + head * value_head_stride,
        new_positions_ptr + head * position_head_stride,
        key_stride,
        value_stride,
        position_stride,
        row * tl.num_programs(1) + head,
        width,
        kept,
        HEAD_DIM,
        BLOCK,
    )


@triton.jit(do_not_specialize=["position_layer_stride", "position_head_stride", "row", "kept"])
def _fill_layers(
    addresses_ptr,
    widths_ptr,
    draw_ptr,
    new_keys_ptr,
    new_values_ptr,
    new_positions_ptr,
    key_layer_stride,
    key_head_stride,
    key_stride,
    value_layer_stride,
    value_head_stride,
    value_stride,
    position_layer_stride,
    position_head_stride,
    position_stride,
    row,
    kept,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    head, layer = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    addresses_ptr += layer * 6
    _fill_head(
        tl.load(addresses_ptr).to(tl.pointer_type(new_keys_ptr.dtype.element_ty)),
        tl.load(addresses_ptr + 1).to(tl.pointer_type(new_values_ptr.dtype.element_ty)),
        tl.load(addresses_ptr + 2).to(tl.pointer_type(tl.int32)),
        tl.load(addresses_ptr + 3).to(tl.pointer_type(tl.int32)),
        tl.load(addresses_ptr + 4).to(tl.pointer_type(tl.int32)),
        new_keys_ptr + layer * key_layer_stride + head * key_head_stride,
        new_values_ptr + layer * value_layer_stride + head * value_head_stride,
        new_positions_ptr + layer * position_layer_stride + head * position_head_stride,
        key_stride,
        value_stride,
        position_stride,
        row * tl.num_programs(1) + head,
        tl.load(widths_ptr + layer),
        kept,
        HEAD_DIM,
        BLOCK,
    )
    if (tl.program_id(0) == 0) & (head == 0):
        draws_ptr = tl.load(addresses_ptr + 5).to(tl.pointer_type(tl.int64))
        tl.store(draws_ptr + row, tl.load(draw_ptr))


@triton.jit
def _fill_head(
    keys_ptr,
    values_ptr,
    positions_ptr,
    ranks_ptr,
    vacant_ptr,
    new_keys_ptr,
    new_values_ptr,
    new_positions_ptr,
    key_stride,
    value_stride,
    position_stride,
    own,
    width,
    kept,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of the slots of the head that is number ``own`` of all rows."""
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists, taken = slot < width, slot < kept
    places = new_positions_ptr + slot.to(tl.int64) * position_stride
    position = tl.load(places, mask=taken, other=_FREE).to(tl.int32)
    tl.store(positions_ptr + own * width + slot, position, mask=exists)
    rank = tl.where(position == _FREE, _FREE, slot)
    tl.store(ranks_ptr + own * width + slot, rank, mask=exists)
    if tl.program_id(0) == 0:
        tl.store(vacant_ptr + own, kept)
    d = tl.arange(0, HEAD_DIM)[None, :]
    token, exists, taken = slot[:, None].to(tl.int64), exists[:, None], taken[:, None]
    there = (own * width + token) * HEAD_DIM + d
    keys = tl.load(new_keys_ptr + token * key_stride + d, mask=taken)
    tl.store(keys_ptr + there, keys, mask=taken)
    values = tl.load(new_values_ptr + token * value_stride + d, mask=taken, other=0.0)
    tl.store(values_ptr + there, values, mask=exists)
