"""Where two layers hold the middle of each prompt together, beside their slots."""

from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from scope.errors import ScopeError
from scope.kernels.tensors import FREE, CompactTensors
from scope.methods.minicache import directions, distances
from scope.methods.prompt import Entries
from scope.methods.storage import Storage


@dataclass
class Merged:
    """One layer's part of it: the lengths of its keys and values, and where their directions are.

    Attributes:
        lengths: ``[2, B, H, P]`` of keys and of values.
        directions: ``[2, B, H, P, D]``, of both layers; they are the lower one's.
        positions: ``[B, H, P]`` int32, or FREE where there is no token.
        count: ``[B]`` int32, tokens of each row.
        below: the lower layer's part; None if this is it.
    """

    lengths: Tensor
    directions: Tensor
    positions: Tensor
    count: Tensor
    below: Optional["Merged"]

    @classmethod
    def empty(
        cls, like: Tensor, batch_size: int, heads: int, tokens: int, below: Optional["Merged"]
    ) -> "Merged":
        """Room for so many tokens of each head; ``like`` is ``[..., D]``."""
        shape = batch_size, heads, tokens
        if below is not None and below.lengths.device != like.device:
            raise ScopeError(
                f"merged_layers: two layers that are held together lie on {below.lengths.device} "
                f"and {like.device}; keep the model on one device"
            )
        return cls(
            lengths=like.new_zeros(2, *shape),
            directions=below.directions if below else like.new_zeros(2, *shape, like.shape[-1]),
            positions=torch.full(shape, FREE, dtype=torch.int32, device=like.device),
            count=torch.zeros(batch_size, dtype=torch.int32, device=like.device),
            below=below,
        )

    @property
    def nbytes(self) -> int:
        """Of what this layer adds."""
        return self.lengths.nbytes + (0 if self.below else self.directions.nbytes)

    @property
    def token_bytes(self) -> int:
        """Of what this layer reads of one token in all heads."""
        read = self.lengths.nbytes + self.directions.nbytes
        return read // max(self.count.numel() * self.positions.shape[2], 1)

    def restored(self) -> CompactTensors:
        """Keys and values, for as long as a step attends to them."""
        keys, values = self.directions * self.lengths[..., None]
        return CompactTensors.whole(keys, values, self.positions, self.count)


def write_merged(
    parts: tuple[Merged, Merged], storage: Storage, row: int, held: tuple[Entries, Entries]
) -> tuple[Entries, Entries]:
    """Merge the middle of what two layers hold of a row's prompt, but for the most unlike tokens.

    Args:
        parts: of the lower layer and the upper.
        storage: how much is merged.
        row: which.
        held: all that they hold.

    Returns:
        What stays whole in each.

    Raises:
        ScopeError: where they hold different tokens.
    """
    lower, upper = held
    positions = lower.positions
    alike = positions.shape == upper.positions.shape
    if not alike or bool(((positions != upper.positions) | (positions == FREE)).any()):
        raise ScopeError(
            "merged_layers holds tokens for two layers, which keep different ones; take a method "
            "that keeps the same in all layers, as ALLKV"
        )
    kept = positions.shape[1]
    count = int(storage.merged(np.array(kept)))
    first, last = storage.whole_sinks, kept - storage.whole_recent
    states = [torch.stack([one.keys, one.values]) for one in held]
    apart = distances(*states).mean(dim=0)
    apart[:, :first] = apart[:, max(last, 0) :] = torch.inf
    # Who is merged, the likest first; of equals the earlier.
    order = apart.sort(dim=-1, stable=True).indices
    chosen, rest = (part.sort(dim=-1).values for part in order.tensor_split([count], dim=-1))

    def of(states: Tensor, places: Tensor) -> Tensor:
        wide = places[..., None].expand(*places.shape, states.shape[-1])
        return states.gather(-2, wide.expand(*states.shape[:-2], *wide.shape[-2:]))

    middle = [of(both, chosen) for both in states]
    parts[0].directions[:, row, :, :count] = directions(*middle).to(parts[0].directions.dtype)
    for part, both in zip(parts, middle, strict=True):
        part.lengths[:, row, :, :count] = both.float().norm(dim=-1).to(part.lengths.dtype)
        part.positions[row, :, :count] = positions.gather(1, chosen).to(torch.int32)
        part.count[row] = count
    whole = positions.gather(1, rest)
    below, above = (of(both, rest) for both in states)
    return Entries(below[0], below[1], whole), Entries(above[0], above[1], whole)
