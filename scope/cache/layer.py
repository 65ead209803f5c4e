"""The slots of one layer."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from scope.errors import ScopeError
from scope.methods.decoding import Score
from scope.methods.prompt import GroupReduction

FREE = -1


@dataclass(frozen=True)
class Ranking:
    """What decides between tokens that may leave.

    Attributes:
        score: what they compete by; None if none ever leaves.
        reduction: how the attention of the query heads of a group becomes one number.
        dtype: attention probabilities are rounded to it before tokens are ranked.
        recent: R, newest tokens that stay.
    """

    score: Score | None
    reduction: GroupReduction
    dtype: torch.dtype
    recent: int


class SlotLayer(CacheLayerMixin):
    """Keys and values in fixed places; evicting a token frees its slot for the next one.

    Args:
        index: number of the layer.

    Attributes:
        keys, values: ``[B, H, S, D]``.
        positions: ``[B, H, S]`` int32, the position of the token in its sequence, or FREE.
        ranks: ``[B, H, S]`` int32, the order in which a head's tokens entered the cache, or FREE.
        scores: ``[B, H, S]`` float32, attention that each token has received since it came; kept
            where tokens compete by it.
        vacant: ``[B, H]`` int32, the free slot that the next token takes.
        newest: ``[B]`` int32 rank of each row's newest token.
        protected: ``[B]`` int32, ranks below it are never evicted.
        losses: ``[B]`` int32 tokens that each head loses after this step's attention, at most as
            many as may go; ``most_losses`` is the largest.
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
        self.vacant = torch.zeros(shape[:2], dtype=torch.int32, device=like.device)
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
        # Free slots have weight 0, but 0 times what an overflow has left behind would be NaN.
        self.values[row, :, count:] = 0.0
        self.positions[row] = self.ranks[row] = FREE
        self.positions[row, :, :count] = kept.to(torch.int32)
        self.ranks[row, :, :count] = torch.arange(count, dtype=torch.int32, device=kept.device)
        self.scores[row, :, :count] = 0.0 if scores is None else scores.gather(1, kept)
        self.vacant[row] = count
        self.used = max(self.used, count)

    def append(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Put one new token per row into a free slot.

        Args:
            keys: ``[B, H, D]``; the same for values.
            positions: ``[B]`` int32.
        """
        slot = self.vacant[..., None].long()
        place = slot[..., None].expand(-1, -1, -1, keys.shape[-1])
        self.keys.scatter_(2, place, keys[:, :, None])
        self.values.scatter_(2, place, values[:, :, None])
        self.positions.scatter_(2, slot, positions[:, None, None].expand_as(slot))
        self.ranks.scatter_(2, slot, self.newest[:, None, None].expand_as(slot))
        self.scores.scatter_(2, slot, 0.0)

    def evict(self, ranking: Ranking, current: Tensor) -> None:
        """Free the slots of the lowest scored tokens that are neither protected nor recent.

        Args:
            ranking: what decides between tokens.
            current: ``[B, H, used]`` attention of this step's query.
        """
        positions, ranks = self.positions[:, :, : self.used], self.ranks[:, :, : self.used]
        may_go = (ranks >= self.protected[:, None, None]) & (
            ranks <= self.newest[:, None, None] - ranking.recent
        )
        order = self._eviction_order(ranking.score, current, ranks)
        most = self.most_losses
        victims = order.masked_fill(~may_go, _LAST).topk(most, largest=False).indices
        leaves = torch.full_like(victims, FREE, dtype=torch.int32)
        due = (torch.arange(most, device=victims.device) < self.losses[:, None])[:, None]
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

    def find_vacant(self) -> None:
        """Choose the slot that the next token takes."""
        self.vacant = self.positions.argmin(dim=-1).to(torch.int32)

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
