"""Prompts on their way into slots: compressed, in the form that they are held in, row by row."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scope.cache.arena import Arena
from scope.cache.compact import write_compact
from scope.cache.layer import SlotLayer
from scope.cache.merged import Merged, write_merged
from scope.cache.plan import CachePlan
from scope.cache.schedule import Schedule
from scope.errors import ScopeError
from scope.kernels import Backend, FusingBackend, backend_for, fuses
from scope.kernels.tensors import FREE
from scope.methods.budget import Share, least, most
from scope.methods.prompt import Entries, Prompt
from scope.methods.recipe import Recipe


class PromptWriter:
    """Allocates slots at the first prompt, and fills rows of them.

    Args:
        recipe: the methods.
        plan: sizes.
        schedule: how many tokens each layer and row holds; what a budget decides is told to it.
        layers: those with slots.
        places: where among them each layer of the model finds what it attends to.

    Attributes:
        arena: the slots of layers that share them, once there are any.
        backend: what computes, once there are slots.
    """

    backend: Backend | FusingBackend

    def __init__(
        self,
        recipe: Recipe,
        plan: CachePlan,
        schedule: Schedule,
        layers: Sequence[SlotLayer],
        places: Mapping[int, int],
    ) -> None:
        self._recipe, self._plan, self._schedule = recipe, plan, schedule
        self._layers, self._places = layers, places
        self.arena: Arena | None = None
        # Prompts of which the budget must see every layer first, by row.
        self._waiting: dict[int, list[Prompt]] = {}
        # What a layer holds of a prompt until it is merged with the next one's, by row.
        self._lower: dict[int, Entries] = {}
        self._fill_layers: Callable[..., None] | None = None

    def forget(self) -> None:
        """Let go of what a prefill that failed has left."""
        self._waiting.clear()
        self._lower.clear()

    def allocate(self, layer: SlotLayer, keys: Tensor, query_heads: int) -> None:
        """Allocate a layer for cached keys ``[b, H, L, D]``, whatever their b and L."""
        rows, heads = self._schedule.now.step.size, keys.shape[1]
        before = self._layers[layer.index - 1] if layer.index else None
        self.arena = self._plan.allocate(layer, keys, rows, heads, query_heads, self.arena, before)
        self.backend = backend_for(keys)
        if layer.offloaded and keys.is_cuda and not fuses(self.backend):
            raise ScopeError(
                "offload: on a GPU it takes Triton, a float type of up to 32 bits and a head "
                "size of 16, 32, 64 or 128; leave it out"
            )

    def write(self, row: int, prompt: Prompt, draw: Tensor) -> None:
        """Compress a prompt into a row of its layer, or of all layers once the budget has seen all.

        Args:
            row: which sequence of the batch.
            prompt: in one layer with slots; the others come in their order.
            draw: int64 scalar, what chance makes of the prompt.
        """
        place = self._places[prompt.layer]
        if self._recipe.budget.observes:
            self._waiting.setdefault(row, []).append(prompt)
            if place == len(self._layers) - 1:
                self._share_out(row, self._waiting.pop(row), draw)
        else:
            self._write(row, prompt, int(self._schedule.kept[place, row]), draw)

    def write_together(
        self, row: int, prompt: Prompt, shape: tuple[int, int], draw: Tensor
    ) -> None:
        """Compress a prompt into a row of all layers, which are heads of one.

        Args:
            row: which sequence of the batch.
            prompt: ``[N H, L, D]`` keys and values, ``[N H_q, L, D]`` queries.
            shape: N and H.
            draw: int64 scalar, what chance makes of the prompt, on the device.
        """
        entries = self._entries(prompt, int(self._schedule.kept[0, row]))
        compact = [layer.compact for layer in self._layers if layer.compact is not None]
        if compact:
            compact, entries = write_compact(
                compact, self._recipe.storage, row, entries, prompt.queries
            )
            for layer, own in zip(self._layers, compact, strict=True):
                layer.compact = own
        parts = entries.keys, entries.values, entries.positions
        fill = self._fill_layers
        if fill is None:
            backend: Any = self.backend  # one that fuses
            slots, draws = zip(*((layer.slots, layer.draw) for layer in self._layers), strict=True)
            fill = self._fill_layers = backend.filler(slots, draws)
        fill(row, *(part.unflatten(0, shape) for part in parts), draw)
        for layer, positions in zip(self._layers, entries.positions.chunk(shape[0]), strict=True):
            layer.start_over(row, positions, {})

    def _share_out(self, row: int, prompts: list[Prompt], draw: Tensor) -> None:
        """Compress one prompt in all layers, by a budget that has seen all of them."""
        budget, length = self._recipe.budget, prompts[0].length
        home = prompts[0].keys.device
        seen = torch.stack([budget.observe(prompt).to(home) for prompt in prompts])
        shares = budget.share_out(seen.cpu(), length)
        widest = shares if shares.ndim == 1 else shares.max(axis=1)
        ceiling = np.asarray(budget.ceiling(length, len(prompts)))
        if (widest > ceiling).any():
            raise ScopeError(
                f"the budget {budget.name} gives a layer {widest.max()} tokens of a prompt; its "
                f"ceiling said at most {ceiling[np.argmax(widest > ceiling)]}"
            )
        if (np.minimum(shares.T, length) != np.minimum(widest, length)).any():
            self._recipe.check_unequal_heads()
        self._schedule.hold(row, widest.tolist())
        if self.arena is not None:
            own = np.broadcast_to(shares.reshape(len(prompts), -1), self.arena.start[:, row].shape)
            kept = np.minimum(own, length)
            gaps = kept.max(axis=1, keepdims=True) - kept
            self.arena.lay_out(row, self._plan.rooms(own, length), gaps)
        for prompt, share in zip(prompts, np.minimum(shares, length), strict=True):
            self._write(row, prompt, share if np.ndim(share) else int(share), draw)

    def _write(self, row: int, prompt: Prompt, share: Share, draw: Tensor) -> None:
        entries = self._entries(prompt, share)
        if self._recipe.heads.share_heads and bool(
            (entries.positions != entries.positions[:1]).any()
        ):
            raise ScopeError(
                f"share_heads is true, but {self._recipe.compressor.name} with the budget "
                f"{self._recipe.budget.name} keeps other tokens in each head; leave share_heads out"
            )
        remembered: Mapping[str, Tensor] = {}
        if self._recipe.strategy.unified and self._recipe.score is not None:
            remembered = self._recipe.score.remember(prompt)
        layer, storage = self._layers[self._places[prompt.layer]], self._recipe.storage
        if layer.key_scale is not None:
            layer.key_scale.of(row).fit(entries.keys, entries.positions != FREE)
        if layer.compact is not None:
            (layer.compact,), entries = write_compact(
                [layer.compact], storage, row, entries, prompt.queries
            )
        if layer.latent is not None:
            entries = layer.latent.write(storage, row, entries, prompt.hidden)
        whole = [(layer, entries)]
        if layer.merged is not None:
            whole = self._merge(row, layer, layer.merged, entries)
        for one, rest in whole:
            one.write_prompt(self.backend, row, rest, draw.to(one.draw.device), remembered)
        if layer.working is not None:
            worth = self._recipe.strategy.rank_prompt(prompt)
            held, query = layer.slots.first(most(share)), prompt.queries[:, -1]
            layer.working.begin(self.backend, row, held, worth, query)

    def _merge(
        self, row: int, layer: SlotLayer, merged: Merged, entries: Entries
    ) -> list[tuple[SlotLayer, Entries]]:
        """What stays whole of a row's prompt, once both layers have it."""
        if merged.below is None:
            self._lower[row] = entries
            return []
        both, parts = (self._lower.pop(row), entries), (merged.below, merged)
        rest = write_merged(parts, self._recipe.storage, row, both)
        return list(zip((self._layers[layer.index - 1], layer), rest, strict=True))

    def _entries(self, prompt: Prompt, share: Share) -> Entries:
        length = prompt.length
        # The order of what is kept matters where a part of it is frozen.
        in_order = prompt.by_position or length <= self._recipe.budget.nominal(length)
        if in_order and length <= least(share):
            return prompt.whole()
        entries = self._recipe.compressor.compress(prompt, share)
        count = entries.positions.shape[1]
        if count != most(share):
            raise ScopeError(
                f"the compressor {self._recipe.compressor.name} answers {count} entries a head "
                f"for a share of {most(share)}; fill what is missing with FREE"
            )
        return entries
