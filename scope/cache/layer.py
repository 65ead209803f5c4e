"""The slots of one layer."""

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from scope.errors import ScopeError
from scope.methods.decoding import Counts, Score

FREE = -1


class SlotLayer(CacheLayerMixin):
    """Keys and values in fixed places; evicting a token frees its slot for the next one.

    Args:
        index: number of the layer.

    Attributes:
        keys, values: ``[B, H, S, D]``.
        positions: ``[B, H, S]`` int32, the position of the token in its sequence, or FREE.
        ranks: ``[B, H, S]`` int32, the order in which a head's tokens entered the cache, or FREE.
        scores: ``[B, H, S]`` float32, attention that each token has received since it came.
        newest: ``[B]`` int32 rank of each row's newest token.
        protected: ``[B]`` int32, ranks below it are never evicted.
        used: slots from the first on that have ever been taken; the others need not be read.
    """

    is_sliding = False

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def allocate(self, like: Tensor, batch_size: int, heads: int, slots: int) -> None:
        """Allocate all slots, with the dtype, device and head size of ``like`` ``[..., D]``."""
        shape = (batch_size, heads, slots)
        self.keys = like.new_zeros(*shape, like.shape[-1])
        self.values = like.new_zeros(*shape, like.shape[-1])
        self.positions = torch.full(shape, FREE, dtype=torch.int32, device=like.device)
        self.ranks = torch.full_like(self.positions, FREE)
        self.scores = torch.zeros(shape, dtype=torch.float32, device=like.device)
        self.newest = torch.zeros(batch_size, dtype=torch.int32, device=like.device)
        self.protected = torch.zeros_like(self.newest)
        self.used = 0
        self.is_initialized = True

    def write_prompt(
        self, row: int, keys: Tensor, values: Tensor, kept: Tensor, scores: Tensor | None
    ) -> None:
        """Start a row over with the kept tokens of a prompt.

        Args:
            row: which sequence of the batch.
            keys: ``[H, L, D]``, all of the prompt; the same for values.
            kept: ``[H, P]`` positions, in the order of their ranks.
            scores: ``[H, L]`` attention received so far, or None for 0.
        """
        count = kept.shape[1]
        places = kept[..., None].expand(-1, -1, keys.shape[-1])
        self.keys[row, :, :count] = keys.gather(1, places)
        self.values[row, :, :count] = values.gather(1, places)
        self.positions[row] = self.ranks[row] = FREE
        self.positions[row, :, :count] = kept.to(torch.int32)
        self.ranks[row, :, :count] = torch.arange(count, dtype=torch.int32, device=kept.device)
        self.scores[row, :, :count] = 0.0 if scores is None else scores.gather(1, kept)
        self.newest[row] = count - 1
        self.used = max(self.used, count)

    def append(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Put one new token per row into a free slot.

        Args:
            keys: ``[B, H, D]``; the same for values.
            positions: ``[B]`` int32.
        """
        self.newest += 1
        slot = self.positions[:, :, : self.used].argmin(dim=-1, keepdim=True)
        place = slot[..., None].expand(-1, -1, -1, keys.shape[-1])
        self.keys.scatter_(2, place, keys[:, :, None])
        self.values.scatter_(2, place, values[:, :, None])
        self.positions.scatter_(2, slot, positions[:, None, None].expand_as(slot))
        self.ranks.scatter_(2, slot, self.newest[:, None, None].expand_as(slot))
        self.scores.scatter_(2, slot, 0.0)

    def evict(self, losses: Counts, recent: int, score: Score, current: Tensor) -> None:
        """Free the slots of the lowest scored tokens that are neither protected nor recent.

        Args:
            losses: ``[B]`` tokens to evict per head, at most as many as may go.
            recent: R, newest tokens that stay.
            score: what decides between tokens.
            current: ``[B, H, used]`` attention of this step's query.
        """
        most = int(losses.max())
        if most == 0:
            return
        positions, ranks = self.positions[:, :, : self.used], self.ranks[:, :, : self.used]
        may_go = (ranks >= self.protected[:, None, None]) & (
            ranks <= self.newest[:, None, None] - recent
        )
        order = self._eviction_order(score, current, ranks)
        victims = order.masked_fill(~may_go, _LAST).topk(most, largest=False).indices
        leaves = torch.full_like(victims, FREE, dtype=torch.int32)
        if losses.min() == most:
            positions.scatter_(2, victims, leaves)
            ranks.scatter_(2, victims, leaves)
            return
        due = torch.from_numpy(np.arange(most) < losses[:, None]).to(victims.device)[:, None]
        positions.scatter_(2, victims, leaves.where(due, positions.gather(2, victims)))
        ranks.scatter_(2, victims, leaves.where(due, ranks.gather(2, victims)))

    def _eviction_order(self, score: Score, current: Tensor, ranks: Tensor) -> Tensor:
        """int64 keys, lowest first to go."""
        if score == "recent":
            return ranks.long()
        if score == "random":
            heads = torch.arange(ranks.shape[1], device=ranks.device)[:, None]
            return _hash(ranks.long() + 1_000_003 * heads + 1_000_000_007 * self.index)
        received = current if score == "current" else self.scores[:, :, : self.used]
        return _by_worth_then_newest(received, ranks)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise ScopeError(_NOT_PATCHED)

    def update(self, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        raise ScopeError(_NOT_PATCHED)

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return self.keys.shape[2] if self.is_initialized else -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0


def _hash(numbers: Tensor) -> Tensor:
    """Well mixed 32-bit numbers: a token's chance depends on it alone, not on its batch."""
    for _ in range(2):
        numbers = ((numbers ^ (numbers >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return numbers ^ (numbers >> 16)


_LAST = torch.iinfo(torch.int64).max


def _by_worth_then_newest(worth: Tensor, ranks: Tensor) -> Tensor:
    """int64 keys: the lower scored first, and of equals the newest, whatever slots they are in.

    Equals are common: attention to a token underflows to 0. Without a rule a batch would evict
    others than a row alone. The bits of floats that are not negative are ordered as they are.
    """
    return (worth.contiguous().view(torch.int32).long() << 32) - ranks


_NOT_PATCHED = (
    "a SlotCache was given to a model whose attention is not patched; generate inside "
    "`with scope.patch(model):`"
)
