"""Keys and values in few bits: asymmetric rounding to codes, packed into bytes.

A group of numbers is stored as ``code * scale + zero``, with codes from 0 to 2^bits - 1. Keys are
grouped along tokens, channel by channel, since some of their channels are far from 0 in every
token; values token by token, along channels (KIVI, arXiv 2402.02750, section 3).
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

# What a code of so many bits is split into: a byte holds whole parts.
PARTS: dict[int, tuple[int, ...]] = {8: (8,), 4: (4,), 3: (2, 1), 2: (2,)}


@dataclass(frozen=True)
class Codes:
    """Rounded numbers ``[..., P, D]``, or without bits those numbers as they are.

    Attributes:
        packed: ``[..., P, D * bits / 8]`` uint8. Of every part of the codes, of p bits, come
            D * p / 8 bytes, the i-th of which holds channels i, i + D * p / 8, ... from its lowest
            bits on. Without bits, the numbers.
        scale, zero: float16, ``[..., P / group, D]`` of keys and ``[..., P, D / group]`` of values;
            empty without bits.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor

    @classmethod
    def whole(cls, numbers: Tensor) -> "Codes":
        """Numbers ``[..., P, D]`` as they are."""
        nothing = numbers.new_zeros(*numbers.shape[:-2], 0, 0, dtype=torch.float16)
        return cls(numbers, nothing, nothing)

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, one.name).nbytes for one in fields(self))

    def row(self, row: int | slice, tokens: int, groups: int) -> "Codes":
        """Views of a row's, or some rows', first tokens, and groups of tokens, of each head."""
        return Codes(
            self.packed[row][..., :tokens, :],
            self.scale[row][..., :groups, :],
            self.zero[row][..., :groups, :],
        )

    def copy_(self, other: "Codes") -> None:
        for one in fields(self):
            getattr(self, one.name).copy_(getattr(other, one.name))


def round_keys(keys: Tensor, bits: int | None, group: int) -> Codes:
    """Round ``[..., P, D]`` in groups of tokens; P is a multiple of the group."""
    if bits is None:
        return Codes.whole(keys)
    grouped = keys.unflatten(-2, (-1, group))
    codes, scale, zero = _rounded(grouped, bits, dim=-2)
    return Codes(_pack(codes.flatten(-3, -2), bits), scale.squeeze(-2), zero.squeeze(-2))


def round_values(values: Tensor, bits: int | None, group: int) -> Codes:
    """Round ``[..., P, D]`` in groups of channels; D is a multiple of the group."""
    if bits is None:
        return Codes.whole(values)
    grouped = values.unflatten(-1, (-1, group))
    codes, scale, zero = _rounded(grouped, bits, dim=-1)
    return Codes(_pack(codes.flatten(-2, -1), bits), scale.squeeze(-1), zero.squeeze(-1))


def restore_keys(codes: Codes, bits: int | None, dtype: torch.dtype) -> Tensor:
    """``[..., P, D]``."""
    if bits is None:
        return codes.packed.to(dtype)
    numbers = _unpack(codes.packed, bits, codes.scale.shape[-1])
    groups = codes.scale.shape[-2]
    grouped = numbers.unflatten(-2, (groups, numbers.shape[-2] // max(groups, 1)))
    return _restored(grouped, codes.scale[..., None, :], codes.zero[..., None, :], dtype).flatten(
        -3, -2
    )


def restore_values(codes: Codes, bits: int | None, head_dim: int, dtype: torch.dtype) -> Tensor:
    """``[..., P, D]``."""
    if bits is None:
        return codes.packed.to(dtype)
    numbers = _unpack(codes.packed, bits, head_dim).unflatten(-1, (codes.scale.shape[-1], -1))
    return _restored(numbers, codes.scale[..., None], codes.zero[..., None], dtype).flatten(-2, -1)


def stored_as(dtype: torch.dtype, numbers: Tensor) -> Tensor:
    """Numbers in the type of the slots; those beyond its range become its largest."""
    if dtype.itemsize > 1:
        return numbers.to(dtype)
    largest = torch.finfo(dtype).max
    return numbers.clamp(-largest, largest).to(dtype)


def movable(numbers: Tensor) -> Tensor:
    """As they are, but floats of 8 bits as bytes, which torch knows how to move."""
    return numbers.view(torch.uint8) if numbers.itemsize == 1 else numbers


def _rounded(grouped: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    grouped = grouped.float()
    low, high = grouped.amin(dim, keepdim=True), grouped.amax(dim, keepdim=True)
    # Codes are chosen for the scale and zero that are stored, rounded themselves. A group of equal
    # numbers is all zero; any scale does.
    scale = ((high - low) / (2**bits - 1)).clamp(min=2**-14).half()
    zero = low.half()
    codes = ((grouped - zero.float()) / scale.float()).round().clamp(0, 2**bits - 1)
    return codes.to(torch.uint8), scale, zero


def _restored(codes: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    return (codes.float() * scale.float() + zero.float()).to(dtype)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """``[..., D]`` uint8 codes to ``[..., D * bits / 8]`` bytes."""
    packed, done = [], 0
    for part in PARTS[bits]:
        places = (codes >> done & (1 << part) - 1).unflatten(-1, (8 // part, -1))
        shifts = part * torch.arange(8 // part, device=codes.device, dtype=torch.uint8)
        packed.append((places << shifts[:, None]).sum(dim=-2, dtype=torch.uint8))
        done += part
    return torch.cat(packed, dim=-1)


def _unpack(packed: Tensor, bits: int, head_dim: int) -> Tensor:
    """The reverse of `_pack`."""
    codes, done = torch.zeros((), dtype=torch.uint8, device=packed.device), 0
    widths = [head_dim * part // 8 for part in PARTS[bits]]
    for part, own in zip(PARTS[bits], packed.split(widths, dim=-1), strict=True):
        shifts = part * torch.arange(8 // part, device=packed.device, dtype=torch.uint8)
        places = own[..., None, :] >> shifts[:, None] & (1 << part) - 1
        codes, done = codes | places.flatten(-2) << done, done + part
    return codes
