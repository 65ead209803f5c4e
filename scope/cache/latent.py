"""Where the middle of each prompt is held as low-rank latents, beside a layer's slots."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scope.errors import ScopeError
from scope.kernels.tensors import FREE, CompactTensors
from scope.methods.lorc import Factors
from scope.methods.prompt import Entries
from scope.methods.storage import Storage


@dataclass
class Latents:
    """Of one layer's prompts; a token is held once for all heads, without RoPE.

    Attributes:
        keys, values: ``[B, P, r]``.
        positions: ``[B, P]`` int32, or FREE where there is no token.
        count: ``[B]`` int32, tokens of each row.
        factors: that make keys and values of them.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    count: Tensor
    factors: Factors

    @classmethod
    def empty(
        cls, like: Tensor, batch_size: int, heads: int, tokens: int, factors: Factors
    ) -> "Latents":
        """Room for so many tokens; ``like`` is ``[..., D]``.

        Raises:
            ScopeError: where the factors are of another number of heads.
        """
        if len(factors.key_up) != heads * like.shape[-1]:
            raise ScopeError(
                f"low_rank has factors of {len(factors.key_up)} numbers of a key in all heads, and "
                f"{heads} heads of {like.shape[-1]} are cached; take this model's, neither split "
                "nor with cached_heads query"
            )
        keys, values = (
            like.new_zeros(batch_size, tokens, len(down))
            for down in (factors.key_down, factors.value_down)
        )
        positions = torch.full((batch_size, tokens), FREE, dtype=torch.int32, device=like.device)
        count = torch.zeros(batch_size, dtype=torch.int32, device=like.device)
        return cls(keys, values, positions, count, factors.like(like))

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def token_bytes(self) -> int:
        """Of one token in all heads."""
        return (self.keys.shape[-1] + self.values.shape[-1]) * self.keys.itemsize

    def write(self, storage: Storage, row: int, entries: Entries, read: Tensor) -> Entries:
        """Hold the middle of what is held of a row's prompt; what stays whole is given back.

        Args:
            storage: how much that is.
            row: which.
            entries: tokens as they are, the same in all heads.
            read: ``[L, hidden]`` what the layer reads of the prompt.

        Raises:
            ScopeError: where heads hold different tokens.
        """
        if bool((entries.positions != entries.positions[:1]).any()):
            raise ScopeError(
                "low_rank holds a token for all heads of a layer, and they keep different ones; "
                "give share_heads true, or take a method by which they agree"
            )
        count = int(storage.compact(np.array(entries.positions.shape[1])))
        self.count[row] = count
        middle, rest = entries.split(storage.whole_sinks, count)
        positions = middle.positions[0]
        self.keys[row, :count], self.values[row, :count] = self.factors.latents(read[positions])
        self.positions[row, :count] = positions.to(torch.int32)
        return rest

    def restored(self) -> CompactTensors:
        """Keys and values of all heads, for as long as a step attends to them."""
        positions = self.positions.clamp(min=0)
        keys, values = self.factors.keys(self.keys, positions), self.factors.values(self.values)
        positions = self.positions[:, None].expand(keys.shape[:3])
        return CompactTensors.whole(
            keys.contiguous(), values.contiguous(), positions.contiguous(), self.count
        )
