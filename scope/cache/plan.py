"""What a cache will take, known from lengths alone: made once, and asked by whoever must know."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from scope.cache.layer import SlotLayer
from scope.cache.rounded import empty_rounded
from scope.cache.schedule import Schedule, base_of
from scope.cache.working import WorkingSet
from scope.kernels.tensors import RoundedTensors
from scope.methods.recipe import Recipe
from scope.methods.strategy import Counts


@dataclass(frozen=True)
class CachePlan:
    """Sizes of a cache for some prompts and T generated tokens after each.

    Attributes:
        recipe: what the cache is made by.
        max_new_tokens: T.
        capacities: prompt tokens that each layer may keep of the longest prompt.
        slots: slots per layer: the largest physical length that occurs, but for what is rounded.
        rounded: most tokens per layer that are held in few bits instead.
        heads: cached heads.
        query_heads: of the model.
        head_dim: D.
        vocabulary: of the model.
        initial: per layer, what states of a score start with that are not per slot.
    """

    recipe: Recipe
    max_new_tokens: int
    capacities: tuple[int, ...]
    slots: tuple[int, ...]
    rounded: tuple[int, ...]
    heads: int
    query_heads: int
    head_dim: int
    vocabulary: int
    initial: tuple[Mapping[str, Tensor], ...] = field(repr=False, compare=False)

    @classmethod
    def make(
        cls,
        config: PreTrainedConfig,
        recipe: Recipe,
        max_new_tokens: int,
        prompt_lengths: Sequence[int],
    ) -> "CachePlan":
        """Plan for prompts of these lengths and a model of this configuration."""
        config = config.get_text_config()
        layers, longest = config.num_hidden_layers, max(prompt_lengths)
        repeated = recipe.cached_heads == "query"
        query_heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // query_heads
        return cls(
            recipe=recipe,
            max_new_tokens=max_new_tokens,
            capacities=tuple(
                min(capacity, longest) for capacity in recipe.budget.ceiling(longest, layers)
            ),
            slots=tuple(slots_needed(recipe, max_new_tokens, layers, prompt_lengths)),
            rounded=tuple(most_rounded(recipe, layers, prompt_lengths).tolist()),
            # Some families have no other heads, and say nothing of them.
            heads=(not repeated and getattr(config, "num_key_value_heads", None)) or query_heads,
            query_heads=query_heads,
            head_dim=head_dim,
            vocabulary=config.vocab_size,
            initial=tuple(
                recipe.score.initial(config, layer) if recipe.score else {}
                for layer in range(layers)
            ),
        )

    def kv_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one row's keys and values, free slots included."""
        return sum(layer.kv_bytes for layer in self._of_one_row(dtype))

    def read_bytes(self, dtype: torch.dtype, full_share: float | None = None) -> int:
        """Bytes of them that a decode step reads, on average, where all slots are taken.

        Args:
            dtype: of the model.
            full_share: as in `Strategy.read`.
        """
        slots = np.asarray(self.slots)
        unread = 1 - self.recipe.strategy.read(slots, full_share) / slots
        layers = zip(unread, self._of_one_row(dtype), strict=True)
        return round(
            sum(one.kv_bytes - part * (one.keys.nbytes + one.values.nbytes) for part, one in layers)
        )

    def row_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that each row of a batch takes: its slots, and its part of a decode step."""
        held = sum(
            part.nbytes
            for layer in self._of_one_row(dtype)
            for part in (*vars(layer).values(), *layer.state.values())
            if isinstance(part, Tensor | RoundedTensors | WorkingSet)
        )
        # One layer after the other, a step keeps the attention logits of every slot in float32;
        # then come the logits of the vocabulary, as the model gives them and in float32.
        logits = 4 * self.query_heads * max(self.slots) + self.vocabulary * (4 + dtype.itemsize)
        return held + logits

    def _of_one_row(self, dtype: torch.dtype) -> Iterator[SlotLayer]:
        """Every layer's slots for one row, without memory."""
        like = torch.empty(self.head_dim, dtype=dtype, device="meta")
        for index in range(len(self.slots)):
            layer = SlotLayer(index)
            self.allocate(layer, like, 1, self.heads, self.query_heads)
            yield layer

    def allocate(
        self, layer: SlotLayer, like: Tensor, batch_size: int, heads: int, query_heads: int
    ) -> None:
        """Allocate one layer's slots, and what holds rounded tokens beside them."""
        working_set, storage = self.recipe.strategy.working_set, self.recipe.storage
        slots, state = self.slots[layer.index], self.recipe.state
        stored = like.new_empty(like.shape[-1], dtype=storage.slot_dtype(like.dtype))
        layer.allocate(stored, batch_size, heads, query_heads, slots, state, working_set)
        layer.initial = {
            name: start.to(like.device) for name, start in self.initial[layer.index].items()
        }
        if storage.rounds:
            rounded = self.rounded[layer.index]
            layer.rounded = empty_rounded(like, batch_size, heads, rounded, storage)


def slots_needed(
    recipe: Recipe, max_new_tokens: int, num_layers: int, prompt_lengths: Sequence[int]
) -> list[int]:
    """Slots per layer that hold any of these prompts and T generated tokens."""
    distinct = sorted(set(prompt_lengths))
    if recipe.strategy.counts_on:
        return _counted(recipe, max_new_tokens, num_layers, distinct)
    return _by_formula(recipe, max_new_tokens, num_layers, distinct)


def _counted(
    recipe: Recipe, max_new_tokens: int, num_layers: int, prompt_lengths: Sequence[int]
) -> list[int]:
    """By counting through all T steps."""
    schedule = Schedule(recipe, num_layers, len(prompt_lengths))
    for row, length in enumerate(prompt_lengths):
        schedule.admit(row, length)
    for _ in range(max_new_tokens):
        schedule.advance()
    return (schedule.peak - _surely_rounded(recipe, schedule.kept)).max(axis=1).tolist()


def _by_formula(
    recipe: Recipe, max_new_tokens: int, num_layers: int, prompt_lengths: Sequence[int]
) -> list[int]:
    """Where targets depend on the step alone.

    After step t a layer holds no more than any earlier target let it, plus what came since: with
    ``spare`` more kept of the prompt than the target's base, t + min(spare, slack) tokens above the
    base, slack being the least pool(s) - s of the due steps s <= t. It never grows, so up to some
    step ``spare`` is the lesser and the last of these steps holds most, and from there on slack is.
    The peak is one more than is held after the step before.
    """
    steps = np.arange(1, max_new_tokens)  # after the last step nothing comes
    slack = recipe.strategy.pool(steps) - steps
    slack = np.minimum.accumulate(np.where(recipe.strategy.due(steps), slack, _ENDLESS))
    most_from = np.maximum.accumulate((steps + slack)[::-1])[::-1]
    most = np.zeros(num_layers, np.int64)
    for length in prompt_lengths:
        capacities = recipe.budget.ceiling(length, num_layers)
        kept, base = np.minimum(capacities, length), base_of(recipe, capacities, length)
        spare = kept - base
        turn = np.searchsorted(-slack, -spare, side="right")  # so many steps have enough slack
        later = np.append(most_from, -_ENDLESS)[turn]
        held = base + np.maximum(turn + spare, later) + 1
        most = np.maximum(most, held - _surely_rounded(recipe, kept))
    return most.tolist()


def _surely_rounded(recipe: Recipe, kept: Counts) -> Counts:
    """How many tokens take no slot, where so many are kept, or up to so many by the data."""
    if not recipe.budget.observes:
        return recipe.storage.rounded(kept)
    return kept - recipe.storage.most_whole(kept)


def most_rounded(recipe: Recipe, num_layers: int, prompt_lengths: Sequence[int]) -> Counts:
    """``[N]`` most tokens of any of these prompts that are held in few bits."""
    kept = [
        np.minimum(recipe.budget.ceiling(length, num_layers), length)
        for length in sorted(set(prompt_lengths))
    ]
    return np.max([recipe.storage.rounded(one) for one in kept], axis=0)


_ENDLESS = np.iinfo(np.int64).max // 2
