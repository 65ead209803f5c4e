"""Keys and values in few bits: asymmetric rounding to codes, packed into bytes.

A group of numbers is stored as ``code * scale + zero``, with codes from 0 to 2^bits - 1. Keys are
grouped along tokens, channel by channel, since some of their channels are far from 0 in every
token; values token by token, along channels (KIVI, arXiv 2402.02750, section 3).
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

# What a code of so many bits is split into: parts that fill words of 16.
PARTS: dict[int, tuple[int, ...]] = {8: (8,), 4: (4,), 3: (2, 1), 2: (2,)}


@dataclass(frozen=True)
class Codes:
    """Rounded numbers ``[..., P, D]``, or without bits those numbers as they are.

    Attributes:
        packed: ``[..., P, D * bits / 8]`` uint8. Of every part of the codes come W words, the i-th
            of which, of 16 bits, holds channels i, i + W, ... from its lowest bits on. Without
            bits, the numbers.
        grid: float16, scale and zero; ``[..., P / group, D, 2]`` of keys and
            ``[..., P, D / group, 2]`` of values; empty without bits.
    """

    packed: Tensor
    grid: Tensor

    @classmethod
    def whole(cls, numbers: Tensor) -> "Codes":
        """Numbers ``[..., P, D]`` as they are."""
        return cls(numbers, numbers.new_zeros(*numbers.shape[:-2], 0, 0, 2, dtype=torch.float16))

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, one.name).nbytes for one in fields(self))

    def row(self, row: int | slice, tokens: int, groups: int) -> "Codes":
        """Views of a row's, or some rows', first tokens, and groups of tokens, of each head."""
        return Codes(
            self.packed[row][..., :tokens, :],
            self.grid[row][..., :groups, :, :],
        )

    def chunk(self, count: int) -> "list[Codes]":
        """Views of equal parts of the first dimension."""
        parts = self.packed.chunk(count), self.grid.chunk(count)
        return [Codes(*both) for both in zip(*parts, strict=True)]

    def copy_(self, other: "Codes") -> None:
        for one in fields(self):
            getattr(self, one.name).copy_(getattr(other, one.name))


def round_keys(keys: Tensor, bits: int | None, group: int) -> Codes:
    """Round ``[..., P, D]`` in groups of tokens; P is a multiple of the group."""
    if bits is None:
        return Codes.whole(keys)
    grouped = keys.unflatten(-2, (-1, group))
    codes, grid = _rounded(grouped, bits, dim=-2)
    return Codes(_pack(codes.flatten(-3, -2), bits), grid)


def round_values(values: Tensor, bits: int | None, group: int) -> Codes:
    """Round ``[..., P, D]`` in groups of channels; D is a multiple of the group."""
    if bits is None:
        return Codes.whole(values)
    grouped = values.unflatten(-1, (-1, group))
    codes, grid = _rounded(grouped, bits, dim=-1)
    return Codes(_pack(codes.flatten(-2, -1), bits), grid)


def restore_keys(codes: Codes, bits: int | None, dtype: torch.dtype) -> Tensor:
    """``[..., P, D]``."""
    if bits is None:
        return codes.packed.to(dtype)
    groups, channels = codes.grid.shape[-3:-1]
    numbers = _unpack(codes.packed, bits, channels)
    grouped = numbers.unflatten(-2, (groups, numbers.shape[-2] // max(groups, 1)))
    return _restored(grouped, codes.grid[..., None, :, :], dtype).flatten(-3, -2)


def restore_values(codes: Codes, bits: int | None, head_dim: int, dtype: torch.dtype) -> Tensor:
    """``[..., P, D]``."""
    if bits is None:
        return codes.packed.to(dtype)
    numbers = _unpack(codes.packed, bits, head_dim).unflatten(-1, (codes.grid.shape[-2], -1))
    return _restored(numbers, codes.grid[..., None, :], dtype).flatten(-2, -1)


def stored_as(dtype: torch.dtype, numbers: Tensor) -> Tensor:
    """Numbers in the type of the slots; those beyond its range become its largest."""
    if dtype.itemsize > 1:
        return numbers.to(dtype)
    largest = torch.finfo(dtype).max
    return numbers.clamp(-largest, largest).to(dtype)


def movable(numbers: Tensor) -> Tensor:
    """As they are, but floats of 8 bits as bytes, which torch knows how to move."""
    return numbers.view(torch.uint8) if numbers.itemsize == 1 else numbers


def _rounded(grouped: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor]:
    grouped = grouped.float()
    low, high = grouped.amin(dim, keepdim=True), grouped.amax(dim, keepdim=True)
    # Codes are chosen for the scale and zero that are stored, rounded themselves. A group of equal
    # numbers is all zero; any scale does.
    scale = ((high - low) / (2**bits - 1)).clamp(min=2**-14).half()
    zero = low.half()
    codes = ((grouped - zero.float()) / scale.float()).round().clamp(0, 2**bits - 1)
    return codes.int(), torch.stack([scale, zero], dim=-1).squeeze(dim - 1)


def _restored(codes: Tensor, grid: Tensor, dtype: torch.dtype) -> Tensor:
    scale, zero = grid.float().unbind(dim=-1)
    return (codes.float() * scale + zero).to(dtype)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """``[..., D]`` int32 codes to ``[..., D * bits / 8]`` bytes."""
    packed, done = [], 0
    for part in PARTS[bits]:
        places = (codes >> done & (1 << part) - 1).unflatten(-1, (16 // part, -1))
        words = (places << _shifts(part, codes.device)).sum(dim=-2, dtype=torch.int32)
        packed.append(words.to(torch.int16))
        done += part
    return torch.cat(packed, dim=-1).view(torch.uint8)


def _unpack(packed: Tensor, bits: int, head_dim: int) -> Tensor:
    """The reverse of `_pack`."""
    codes, done = torch.zeros((), dtype=torch.int32, device=packed.device), 0
    widths = [head_dim * part // 16 for part in PARTS[bits]]
    words = packed.view(torch.int16).int().split(widths, dim=-1)
    for part, own in zip(PARTS[bits], words, strict=True):
        places = own[..., None, :] >> _shifts(part, own.device) & (1 << part) - 1
        codes, done = codes | places.flatten(-2) << done, done + part
    return codes


def _shifts(part: int, device: torch.device) -> Tensor:
    return part * torch.arange(16 // part, device=device, dtype=torch.int32)[:, None]
