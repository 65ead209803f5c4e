"""What a cache will take, known from lengths alone: made once, and asked by whoever must know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from scope.cache.arena import Arena, SpannedLayer
from scope.cache.compact import empty_compact
from scope.cache.latent import Latents
from scope.cache.layer import SlotLayer, in_numbers, per_slot, sizes_of
from scope.cache.merged import Merged
from scope.cache.schedule import Schedule, base_of
from scope.cache.working import WorkingSet
from scope.errors import ScopeError
from scope.kernels.tensors import CompactTensors, KeyScale
from scope.methods.lorc import Factors
from scope.methods.minicache import is_merged
from scope.methods.recipe import Recipe
from scope.methods.rope import head_dim_of
from scope.methods.strategy import Counts


@dataclass(frozen=True)
class CachePlan:
    """Sizes of a cache for some prompts and T generated tokens after each.

    Attributes:
        recipe: what the cache is made by.
        max_new_tokens: T.
        capacities: prompt tokens that each layer may keep of the longest prompt.
        owners: the layers of the model that have slots; per layer means per one of them.
        slots: slots per layer: the largest physical length that occurs, but for what is compact.
        compact: most tokens per layer that are held in less room instead.
        arena: slots that all layers share, per head; None where each has its own.
        heads: cached heads.
        query_heads: of the model.
        head_dim: D.
        vocabulary: of the model.
        factors: per layer, what makes keys and values of latents; empty where there are none.
        initial: per layer, what states of a score start with that are not per slot.
    """

    recipe: Recipe
    max_new_tokens: int
    owners: tuple[int, ...]
    capacities: tuple[int, ...]
    slots: tuple[int, ...]
    compact: tuple[int, ...]
    arena: int | None
    heads: int
    query_heads: int
    head_dim: int
    vocabulary: int
    factors: tuple[Factors, ...] = field(repr=False, compare=False)
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
        owners, low_rank = recipe.owners(config), recipe.storage.low_rank
        layers, longest = len(owners), max(prompt_lengths)
        repeated = recipe.cached_heads == "query"
        query_heads = config.num_attention_heads
        return cls(
            recipe=recipe,
            max_new_tokens=max_new_tokens,
            owners=tuple(owners),
            capacities=tuple(
                min(capacity, longest) for capacity in recipe.budget.ceiling(longest, layers)
            ),
            slots=tuple(slots_needed(recipe, max_new_tokens, layers, prompt_lengths)),
            compact=tuple(most_compact(recipe, layers, prompt_lengths).tolist()),
            arena=arena_needed(recipe, max_new_tokens, layers, prompt_lengths),
            # Some families have no other heads, and say nothing of them.
            heads=(not repeated and getattr(config, "num_key_value_heads", None)) or query_heads,
            query_heads=query_heads,
            head_dim=head_dim_of(config),
            vocabulary=config.vocab_size,
            factors=tuple(
                Factors.load(low_rank, config, layer) for layer in owners if low_rank is not None
            ),
            initial=tuple(
                recipe.score.initial(config, layer) if recipe.score else {} for layer in owners
            ),
        )

    @property
    def kv_tokens(self) -> float:
        """Tokens that one row holds between two steps: per cached head, averaged over layers."""
        slots = (self.arena or sum(self.slots)) - len(self.slots)  # the next one's is free
        return (slots + sum(self.compact)) / (len(self.slots) + len(self.recipe.sharing.sources))

    def kv_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one row's keys and values on the device, free slots included."""
        layers = self._of_one_row(dtype)
        return layers[0].kv_bytes if self.arena else sum(layer.kv_bytes for layer in layers)

    def host_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one row's keys and values that lie in host memory instead."""
        return sum(one.slot_bytes for one in self._of_one_row(dtype) if one.offloaded)

    def read_bytes(self, dtype: torch.dtype, full_share: float | None = None) -> int:
        """Bytes of all these that a decode step reads, on average, where all slots are taken.

        Args:
            dtype: of the model.
            full_share: as in `Strategy.read`.
        """
        readers = [self.recipe.sharing.readers(owner) for owner in self.owners]
        if self.arena:  # which no working set is a part of, and no layer a known one
            return round(self.kv_bytes(dtype) * sum(readers) / len(readers))
        slots = np.asarray(self.slots)
        parts = self.recipe.strategy.read(slots, full_share) / slots
        layers = zip(readers, parts, self._of_one_row(dtype), strict=True)
        return round(
            sum(
                times * (part * one.slot_bytes + one.beside_bytes + one.lent_bytes)
                for times, part, one in layers
            )
        )

    def row_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that each row of a batch takes of the device: slots, and what a step works on."""
        layers = self._of_one_row(dtype)
        # Layers that share an arena hold the same tensors.
        parts = {
            id(part): part
            for layer in layers
            for part in (*vars(layer).values(), *layer.state.values())
            if isinstance(part, Tensor | KeyScale | CompactTensors | Latents | Merged | WorkingSet)
        }
        held = sum(part.nbytes for part in parts.values()) - self.host_bytes(dtype)
        if self.arena:
            # Without a kernel, each layer in turn is copied out of it.
            held += 2 * self.heads * max(self.slots) * self.head_dim * dtype.itemsize
        if self.factors or self.recipe.storage.merged_layers:  # one layer in turn makes them whole
            held += 2 * self.heads * max(self.compact) * self.head_dim * dtype.itemsize
        # One layer after the other, a step keeps the attention logits of every slot in float32;
        # then come the logits of the vocabulary, as the model gives them and in float32.
        logits = 4 * self.query_heads * max(self.slots) + self.vocabulary * (4 + dtype.itemsize)
        return held + logits

    def rows_within(
        self, dtype: torch.dtype, room: int, host_room: int | None, beside: int = 0
    ) -> int:
        """How many rows fit.

        Args:
            dtype: of the model.
            room: bytes of the device.
            host_room: bytes of the host; None where the device is the host.
            beside: bytes of the device that a row takes besides.
        """
        row, far = self.row_bytes(dtype) + beside, self.host_bytes(dtype)
        if host_room is None:
            return room // (row + far)
        return min(room // row, host_room // far) if far else room // row

    def _of_one_row(self, dtype: torch.dtype) -> list[SlotLayer]:
        """Every layer's slots for one row, without memory."""
        like = torch.empty(self.head_dim, dtype=dtype, device="meta")
        layers = self.layers()
        arena = before = None
        for layer in layers:
            arena = self.allocate(layer, like, 1, self.heads, self.query_heads, arena, before)
            before = layer
        return layers

    def layers(self) -> list[SlotLayer]:
        """One for every layer that is to have slots, still without."""
        kind = SpannedLayer if self.arena else SlotLayer
        return [kind(index, number) for index, number in enumerate(self.owners)]

    def allocate(
        self,
        layer: SlotLayer,
        like: Tensor,
        batch_size: int,
        heads: int,
        query_heads: int,
        arena: Arena | None = None,
        before: SlotLayer | None = None,
    ) -> Arena | None:
        """Allocate one layer's slots, and what holds compact tokens beside them.

        Layers are allocated in order, ``before`` being the one before.

        Returns:
            The arena that all layers share, made with the first of them; None if there is none.
        """
        working_set, storage = self.recipe.strategy.working_set, self.recipe.storage
        slots, state = self.slots[layer.index], self.recipe.state
        stored = like.new_empty(like.shape[-1], dtype=storage.slot_dtype(like.dtype))
        layer.initial = {
            name: start.to(like.device) for name, start in self.initial[layer.index].items()
        }
        if isinstance(layer, SpannedLayer):
            sizes = sizes_of(heads, query_heads, slots, like.shape[-1])
            if arena is None:
                shape = len(self.slots), batch_size, heads
                own = {name: in_numbers(state[name][2:], sizes) for name in per_slot(state)}
                arena = Arena(stored, shape, heads * (self.arena or 0), max(self.slots), own)
            if arena.keys.device != like.device:
                raise ScopeError(
                    f"the budget {self.recipe.budget.name} shares slots out between all layers, "
                    "which must then be on one device"
                )
            layer.join(arena, sizes, state)
            return arena
        offload = self.recipe.strategy.offload
        layer.allocate(stored, batch_size, heads, query_heads, slots, state, working_set, offload)
        tokens = self.compact[layer.index]
        if self.factors:
            factors = self.factors[layer.index]
            layer.latent = Latents.empty(like, batch_size, heads, tokens, factors)
        elif storage.merged_layers is not None:
            if is_merged(storage.merged_layers, len(self.slots))[layer.index]:
                part = before.merged if before else None
                is_upper = part is not None and part.below is None  # else a new pair begins
                lower = part if is_upper else None
                layer.merged = Merged.empty(like, batch_size, heads, tokens, lower)
        elif storage.compacts:
            layer.compact = empty_compact(like, batch_size, heads, tokens, storage)
        return None

    def rooms(self, shares: Counts, length: int) -> Counts:
        """Slots that each head takes, of those with these shares of a prompt."""
        rooms = _most_held(self.recipe, self.max_new_tokens, shares.ravel().tolist(), length)
        return rooms.reshape(shares.shape)


def slots_needed(
    recipe: Recipe, max_new_tokens: int, num_layers: int, prompt_lengths: Sequence[int]
) -> list[int]:
    """Slots per layer that hold any of these prompts and T generated tokens."""
    distinct = sorted(set(prompt_lengths))
    if recipe.strategy.counts_on:
        return _counted(recipe, max_new_tokens, num_layers, distinct)
    most = np.zeros(num_layers, np.int64)
    for length in distinct:
        capacities = recipe.budget.ceiling(length, num_layers)
        held = _most_held(recipe, max_new_tokens, capacities, length)
        most = np.maximum(most, held - _surely_compact(recipe, np.minimum(capacities, length)))
    return most.tolist()


def arena_needed(
    recipe: Recipe, max_new_tokens: int, num_layers: int, prompt_lengths: Sequence[int]
) -> int | None:
    """Slots per head that all layers share, or None.

    They share where slots are one for every token that is kept and the same number besides, however
    a budget divides what it has: then it does not matter how.
    """
    strategy = recipe.strategy
    apart = strategy.counts_on or strategy.working_set or recipe.storage.compacts
    if not recipe.budget.observes or apart or not recipe.follows_shares:
        return None
    needed = 0
    for length in set(prompt_lengths):
        total = recipe.budget.total(length, num_layers)
        if total is None:
            return None
        even = [(total + layer) // num_layers for layer in range(num_layers)]
        needed = max(needed, int(_most_held(recipe, max_new_tokens, even, length).sum()))
    return needed


def _counted(
    recipe: Recipe, max_new_tokens: int, num_layers: int, prompt_lengths: Sequence[int]
) -> list[int]:
    """By counting through all T steps."""
    schedule = Schedule(recipe, num_layers, len(prompt_lengths))
    for row, length in enumerate(prompt_lengths):
        schedule.admit(row, length)
    for _ in range(max_new_tokens):
        schedule.advance()
    return (schedule.peak - _surely_compact(recipe, schedule.kept)).max(axis=1).tolist()


def _most_held(
    recipe: Recipe, max_new_tokens: int, capacities: Sequence[int], length: int
) -> Counts:
    """What layers of these capacities hold at most, where targets depend on the step alone.

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
    kept, base = np.minimum(capacities, length), base_of(recipe, capacities, length)
    spare = kept - base
    turn = np.searchsorted(-slack, -spare, side="right")  # so many steps have enough slack
    later = np.append(most_from, -_ENDLESS)[turn]
    return base + np.maximum(turn + spare, later) + 1


def _surely_compact(recipe: Recipe, kept: Counts) -> Counts:
    """How many tokens take no slot, where so many are kept, or up to so many by the data."""
    if not recipe.budget.observes:
        return recipe.storage.compact(kept)
    return kept - recipe.storage.most_whole(kept)


def most_compact(recipe: Recipe, num_layers: int, prompt_lengths: Sequence[int]) -> Counts:
    """``[N]`` most tokens of any of these prompts that are held in less room."""
    kept = [
        np.minimum(recipe.budget.ceiling(length, num_layers), length)
        for length in sorted(set(prompt_lengths))
    ]
    return np.max([recipe.storage.compact(one) for one in kept], axis=0)


_ENDLESS = np.iinfo(np.int64).max // 2
