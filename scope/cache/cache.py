"""The cache that a model generates with: slots, and the counts that say which of them to free."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from scope.cache.arena import Arena
from scope.cache.compact import write_compact
from scope.cache.layer import SlotLayer
from scope.cache.merged import Merged, write_merged
from scope.cache.plan import CachePlan, arena_needed, most_compact, slots_needed
from scope.cache.schedule import Schedule
from scope.cache.step import decode, look
from scope.errors import ScopeError
from scope.kernels import Backend, FusingBackend, backend_for, fuses
from scope.kernels.tensors import FREE, NewTokens, Sight, StepCounts, mixed
from scope.methods.budget import Share, least, most
from scope.methods.prompt import Entries, Prompt
from scope.methods.recipe import Configuration
from scope.methods.strategy import Counts


class SlotCache(Cache):
    """A transformers `Cache` that compresses the prompt once and evicts while generating.

    Give it as ``past_key_values`` to a model inside ``with scope.patch(model):``. Memory is
    allocated at the first prompt and never grows; each row has its own prompt length and step, so
    a row gives the same tokens in a batch as alone.

    Args:
        config: the model's configuration.
        compression: what to keep.
        max_new_tokens: T, most tokens that will be generated after a prompt.
        batch_size: rows; those of the first batch if None.
        prompt_lengths: lengths of all prompts to come; those of the first batch if None.

    Attributes:
        layers: one `SlotLayer` per layer of the model, but for those that attend to another's.
        num_layers: of the model.
        recipe: the methods, for this T.
        planned: whether a prompt has come, from which on there are a plan and a schedule.
        plan: sizes.
        asks: whether this step asks for what costs much, as seldom scores and strategies that
            rewrite do: where some tokens leave. The host knows, so that either kind of step is a
            record of its own.
        schedule: how many tokens each layer and row holds.
        draws: ``[b]`` int64, a 32-bit number that chance makes of each admitted prompt.
    """

    layers: list[SlotLayer]  # type: ignore[assignment]
    plan: CachePlan
    schedule: Schedule
    asks: bool
    backend: Backend | FusingBackend
    draws: Tensor

    def __init__(
        self,
        config: PreTrainedConfig,
        compression: Configuration,
        max_new_tokens: int,
        batch_size: int | None = None,
        prompt_lengths: Sequence[int] | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise ScopeError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        self.recipe = compression.recipe(max_new_tokens)
        owners = self.recipe.owners(config)
        super().__init__(layers=[SlotLayer(*both) for both in enumerate(owners)])
        self.config, self.num_layers = config, config.num_hidden_layers
        self.max_new_tokens = max_new_tokens
        self._batch_size, self._prompt_lengths = batch_size, prompt_lengths
        # Where in `layers` each layer of the model finds what it attends to.
        self._places = {number: place for place, number in enumerate(owners)}
        for layer, source in self.recipe.sharing.sources.items():
            self._places[layer] = self._places[source]
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next prompts start afresh and may be of other lengths."""
        for layer in self.layers:
            layer.forget()
        self.arena: Arena | None = None
        self.planned = False
        self.prefilling = False
        # Prompts of which the budget must see every layer first, by row.
        self._waiting: dict[int, list[Prompt]] = {}
        # Keys and values of a prompt that later layers attend to as well, by layer.
        self._lent: dict[int, tuple[Tensor, Tensor]] = {}
        # What a layer holds of a prompt until it is merged with the next one's, by row.
        self._lower: dict[int, Entries] = {}
        self._admitted: list[int] = []
        self._padded_length = 0
        self._counts: Tensor | None = None
        self._fill_layers: Callable[..., None] | None = None

    # --- one forward of the model -----------------------------------------------------------------

    def admit(self, rows: Sequence[int]) -> None:
        """Say which rows the next prompts are for; all of them, if this is never called."""
        self._admitted = list(rows)

    def begin_forward(
        self,
        batch_size: int,
        num_tokens: int,
        attention_mask: Tensor | None,
        device: torch.device,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """Start a prefill or a decode step in every layer at once.

        Args:
            batch_size: rows of this forward.
            num_tokens: tokens per row of this forward.
            attention_mask: ``[batch_size, num_tokens]``, 0 for padding on the left; None for none.
            device: where the positions are wanted.
            tokens: ``[batch_size, num_tokens]`` ids, of which chance depends where they are given.

        Returns:
            ``[batch_size, num_tokens]`` position of each token in its own sequence.

        Raises:
            ScopeError: where the cache cannot take these tokens.
        """
        if not self._admitted and not self.planned:
            self.admit(range(batch_size))
        self.prefilling = bool(self._admitted)
        if self.prefilling:
            return self._begin_prefill(batch_size, num_tokens, attention_mask, device, tokens)
        if num_tokens != 1:
            raise ScopeError(
                f"the cache already holds a generation and got {num_tokens} tokens more per row; "
                "call reset() before another prompt, or feed one token at a time"
            )
        return self._begin_step(batch_size, device)

    def _begin_prefill(
        self,
        batch_size: int,
        num_tokens: int,
        attention_mask: Tensor | None,
        device: torch.device,
        tokens: Tensor | None,
    ) -> Tensor:
        rows = self._admitted
        self._waiting.clear()  # a prefill that failed may have left some
        self._lent.clear()
        self._lower.clear()
        if len(rows) != batch_size:
            raise ScopeError(f"{len(rows)} rows were admitted, but {batch_size} prompts came")
        if attention_mask is None:  # what there is to know, nobody has to wait for
            real = torch.ones(batch_size, num_tokens, dtype=torch.bool, device=device)
            lengths = [num_tokens] * batch_size
        else:
            real, lengths = self._read_mask(batch_size, num_tokens, attention_mask)
        if not self.planned:
            self._plan(lengths)
        if not set(lengths) <= self._planned_lengths:
            self._check_room(lengths)
        if max(rows) >= len(self.schedule.prompt_lengths):
            raise ScopeError(
                f"row {max(rows)} was admitted; the cache has {len(self.schedule.prompt_lengths)} "
                "rows, set by batch_size or by the first prompts"
            )
        for row, length in zip(rows, lengths, strict=True):
            self.schedule.admit(row, length)
        self._padded_length = num_tokens
        positions = (real.long().cumsum(dim=1) - 1).clamp(min=0)
        self.draws = self._draw(positions, real, tokens)
        return positions

    def _read_mask(
        self, batch_size: int, num_tokens: int, attention_mask: Tensor
    ) -> tuple[Tensor, list[int]]:
        """The mask as bools, and how many tokens of each row are no padding."""
        if attention_mask.shape != (batch_size, num_tokens):
            raise ScopeError(
                f"attention_mask of a prefill has shape {tuple(attention_mask.shape)}; expected "
                f"{(batch_size, num_tokens)}"
            )
        real = attention_mask.bool()
        lengths = real.sum(dim=1).tolist()
        if bool((real[:, 1:] < real[:, :-1]).any()) or min(lengths) == 0:
            raise ScopeError(
                "prompts must be padded on the left; set tokenizer.padding_side = 'left'"
            )
        return real, lengths

    def _draw(self, positions: Tensor, real: Tensor, tokens: Tensor | None) -> Tensor:
        """``[b]`` int64, a 32-bit number of each prompt and the score's seed."""
        named = positions if tokens is None else mixed(positions) + tokens.to(positions.device)
        draws = (mixed(named) * real).sum(dim=1) & 0xFFFFFFFF
        return mixed(draws + (self.recipe.score.seed if self.recipe.score else 0))

    def _plan(self, lengths: list[int]) -> None:
        prompt_lengths = self._prompt_lengths or lengths
        self._planned_lengths = set(prompt_lengths)
        batch_size = self._batch_size or len(lengths)
        self.schedule = Schedule(self.recipe, len(self.layers), batch_size)
        self.plan = CachePlan.make(self.config, self.recipe, self.max_new_tokens, prompt_lengths)
        self.layers = self.plan.layers()
        self.planned = True

    def _check_room(self, lengths: list[int]) -> None:
        needed = slots_needed(self.recipe, self.max_new_tokens, len(self.layers), lengths)
        compact = most_compact(self.recipe, len(self.layers), lengths)
        shared = arena_needed(self.recipe, self.max_new_tokens, len(self.layers), lengths) or 0
        room = np.concatenate([self.plan.slots, self.plan.compact, [self.plan.arena or 0]])
        if (np.concatenate([needed, compact, [shared]]) > room).any():
            raise ScopeError(
                f"a prompt of {max(lengths)} tokens does not fit into slots made for up to "
                f"{max(self._planned_lengths)}; give the cache all prompt_lengths when making it"
            )

    def _begin_step(self, batch_size: int, device: torch.device) -> Tensor:
        prompt_lengths = self.schedule.prompt_lengths
        if batch_size != len(prompt_lengths) or not prompt_lengths.any():
            raise ScopeError(
                f"a decode step came for {batch_size} rows; the cache has {len(prompt_lengths)}, "
                f"{np.count_nonzero(prompt_lengths)} of them with a prompt"
            )
        if self.schedule.now.step.max() >= self.max_new_tokens:
            raise ScopeError(
                f"the generation is longer than the cache's max_new_tokens {self.max_new_tokens}; "
                "make the cache for the longest generation"
            )
        self.schedule.advance()
        score, strategy = self.recipe.score, self.recipe.strategy
        self.asks = score is not None and (
            not (score.seldom or strategy.rewrites) or bool(self.schedule.losses.any())
        )
        return self._send_counts(device)[:, None]

    def _send_counts(self, device: torch.device) -> Tensor:
        """Copy what every layer must know of this step, at once and without waiting for it.

        It always goes to the same place on the device, where a captured graph finds it. A row
        without a prompt is fed with the others, each time as if its first token came: what that
        writes stays within the row, and the row's next prompt forgets it.
        """
        schedule, before = self.schedule, np.maximum(self.schedule.now.step - 1, 0)
        # Slots and ranks know nothing of the tokens that are held in less room beside them.
        beside = self.recipe.storage.compact(schedule.kept)
        newest, protected = schedule.kept - beside + before, schedule.protected - beside
        counts = np.stack([newest, protected, schedule.losses], axis=1)
        of_rows = [schedule.prompt_lengths + before, schedule.full]
        host = torch.from_numpy(np.append(counts, of_rows).astype(np.int32))
        if self._counts is None:
            self._counts = torch.empty_like(host, device=device)
        if device.type == "cuda":
            host = host.pin_memory()
        self._counts.copy_(host, non_blocking=True)
        own = self._counts[: counts.size].view(counts.shape)
        self.positions, full = self._counts[counts.size :].view(2, -1)
        used = (schedule.peak - beside).max(axis=1).tolist()
        losses = schedule.losses.max(axis=1).tolist()
        for i, layer in enumerate(self.layers):
            there = layer.vacant.device
            layer.used = max(layer.used, used[i])
            newest, protected, leaving = own[i].to(there)
            layer.counts = StepCounts(
                self.positions.to(there), newest, protected, leaving, losses[i], layer.used
            )
            layer.full = full.to(there)
            layer.refreshing = layer.working is not None and self.may_be_full
        return self.positions

    @property
    def may_be_full(self) -> bool:
        """Whether some row may attend to all that it holds at this step."""
        return bool(self.schedule.full.any())

    @property
    def kind(self) -> tuple[bool, bool]:
        """What this step does beside attending, which its record depends on."""
        return self.asks, self.may_be_full

    # --- one layer of that forward ----------------------------------------------------------------

    def borrows(self, layer_idx: int) -> bool:
        """Whether a layer has no slots of its own."""
        return layer_idx in self.recipe.sharing.sources

    def prompt_states(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the admitted prompts that a layer attends to: its own, or another's.

        Raises:
            ScopeError: where the two are on different devices.
        """
        sources = self.recipe.sharing.sources
        if layer_idx in sources.values():
            self._lent[layer_idx] = keys, values
        if layer_idx not in sources:
            return keys, values
        source = sources[layer_idx]
        lent = self._lent[source]
        if layer_idx == max(layer for layer in sources if sources[layer] == source):
            del self._lent[source]
        if lent[0].device != keys.device:
            raise ScopeError(
                f"layer {layer_idx} attends to the slots of layer {source}, which are on "
                f"{lent[0].device}, and it is on {keys.device}; keep layers that share together"
            )
        return lent

    @torch.no_grad()
    def store_prompt(
        self,
        layer_idx: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        sliding_window: int | None,
        hidden: Tensor,
        log_sum_exp: Tensor | None = None,
    ) -> None:
        """Compress the admitted prompts of one layer into their rows, if it has slots.

        Args:
            layer_idx: which layer.
            queries: ``[b, H_q, L, D]``, after RoPE, padded on the left.
            keys: ``[b, H_kv, L, D]``; the same for values.
            scaling: factor on the query-key products.
            sliding_window: tokens back that a query may look, itself included; None for all.
            hidden: ``[b, L, hidden]``, what the layer's attention reads, after its norm.
            log_sum_exp: ``[b, H_q, L]`` of the attention's rows, where it has told it.
        """
        if self.borrows(layer_idx):
            return
        keys, values = self._cached_heads(keys, queries), self._cached_heads(values, queries)
        layer = self.layers[self._places[layer_idx]]
        if not layer.is_initialized:
            self._allocate(layer, keys, queries.shape[1])
        last = layer.index == len(self.layers) - 1
        for i, row in enumerate(self._admitted):
            start = keys.shape[2] - int(self.schedule.prompt_lengths[row])
            prompt = Prompt(
                queries=queries[i, :, start:],
                keys=keys[i, :, start:],
                values=values[i, :, start:],
                hidden=hidden[i, start:],
                layer=layer_idx,
                scaling=scaling,
                sliding_window=sliding_window,
                score_dtype=keys.dtype if self.recipe.score_dtype == "model" else torch.float32,
                by_position=self.recipe.frozen_prefix == "prompt",
                backend=self.backend,
                log_sum_exp=None if log_sum_exp is None else log_sum_exp[i, :, start:],
                heads=self.recipe.heads,
            )
            if self.recipe.budget.observes:
                self._waiting.setdefault(row, []).append(prompt)
                if last:
                    self._share_out(row, self._waiting.pop(row), self.draws[i])
            else:
                share = int(self.schedule.kept[layer.index, row])
                self._write(row, prompt, share, self.draws[i])
        if last:
            self._admitted = []

    def make_room(self, keys: Tensor, query_heads: int) -> None:
        """Allocate every layer, on one device, before the first of the prompts that are known.

        Args:
            keys: ``[1, H_kv, 0, D]`` in the dtype and on the device of those to come.
            query_heads: H_q.
        """
        if not self.planned:
            self._plan([])
        like = self._cached_heads(keys, keys.new_empty(1, query_heads, 0, keys.shape[-1]))
        for layer in self.layers:
            if not layer.is_initialized:
                self._allocate(layer, like, query_heads)

    def _allocate(self, layer: SlotLayer, keys: Tensor, query_heads: int) -> None:
        """Allocate a layer for cached keys ``[b, H, L, D]``, whatever their b and L."""
        rows, heads = self.schedule.now.step.size, keys.shape[1]
        before = self.layers[layer.index - 1] if layer.index else None
        self.arena = self.plan.allocate(layer, keys, rows, heads, query_heads, self.arena, before)
        self.backend = backend_for(keys)
        if layer.offloaded and keys.is_cuda and not self.fused:
            raise ScopeError(
                "offload: on a GPU it takes Triton, a float type of up to 32 bits and a head "
                "size of 16, 32, 64 or 128; leave it out"
            )

    def stores_together(self, length: int) -> bool:
        """Whether `store_together` takes a prompt of so many tokens, once there is room."""
        recipe, layers = self.recipe, self.layers
        apart = recipe.budget.observes or recipe.heads.share_heads or recipe.sharing.sources
        remembers = recipe.strategy.unified and recipe.score is not None
        return (
            recipe.compressor.headwise
            and recipe.cached_heads == "kv"
            and not (apart or remembers)
            and len(set(recipe.budget.ceiling(length, len(layers)))) == 1
            and all(layer.is_initialized and layer.is_plain for layer in layers)
            and self.fused
        )

    @torch.no_grad()
    def store_together(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        log_sum_exp: Tensor | None,
        draw: Tensor,
    ) -> None:
        """Compress the admitted prompt of all layers, as if they were heads of one.

        Args:
            queries: ``[N, H_q, L, D]``, after RoPE; no query lies further back than any may look.
            keys: ``[N, H, L, D]``; the same for values.
            scaling: factor on the query-key products.
            log_sum_exp: ``[N, H_q, L]`` of the attention's rows, where it has told it.
            draw: int64 scalar, the prompt's of ``draws``, on the device.
        """
        (row,), (layers, heads) = self._admitted, keys.shape[:2]
        prompt = Prompt(
            queries=queries.flatten(0, 1),
            keys=keys.flatten(0, 1),
            values=values.flatten(0, 1),
            hidden=keys.new_empty(0, 0),
            layer=0,
            scaling=scaling,
            score_dtype=keys.dtype if self.recipe.score_dtype == "model" else torch.float32,
            by_position=self.recipe.frozen_prefix == "prompt",
            backend=self.backend,
            log_sum_exp=None if log_sum_exp is None else log_sum_exp.flatten(0, 1),
        )
        entries = self._entries(prompt, int(self.schedule.kept[0, row]))
        parts = entries.keys, entries.values, entries.positions
        fill = self._fill_layers
        if fill is None:
            backend: Any = self.backend  # one that fuses
            slots, draws = zip(*((layer.slots, layer.draw) for layer in self.layers), strict=True)
            fill = self._fill_layers = backend.filler(slots, draws)
        fill(row, *(part.unflatten(0, (layers, heads)) for part in parts), draw)
        for layer, positions in zip(self.layers, entries.positions.chunk(layers), strict=True):
            layer.start_over(row, positions, {})
        self._admitted = []

    def _share_out(self, row: int, prompts: list[Prompt], draw: Tensor) -> None:
        """Compress one prompt in all layers, by a budget that has seen all of them."""
        budget, length = self.recipe.budget, prompts[0].length
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
            self.recipe.check_unequal_heads()
        self.schedule.hold(row, widest.tolist())
        if self.arena is not None:
            own = np.broadcast_to(shares.reshape(len(prompts), -1), self.arena.start[:, row].shape)
            kept = np.minimum(own, length)
            gaps = kept.max(axis=1, keepdims=True) - kept
            self.arena.lay_out(row, self.plan.rooms(own, length), gaps)
        for prompt, share in zip(prompts, np.minimum(shares, length), strict=True):
            self._write(row, prompt, share if np.ndim(share) else int(share), draw)

    def _write(self, row: int, prompt: Prompt, share: Share, draw: Tensor) -> None:
        entries = self._entries(prompt, share)
        if self.recipe.heads.share_heads and bool(
            (entries.positions != entries.positions[:1]).any()
        ):
            raise ScopeError(
                f"share_heads is true, but {self.recipe.compressor.name} with the budget "
                f"{self.recipe.budget.name} keeps other tokens in each head; leave share_heads out"
            )
        remembered: Mapping[str, Tensor] = {}
        if self.recipe.strategy.unified and self.recipe.score is not None:
            remembered = self.recipe.score.remember(prompt)
        layer, storage = self.layers[self._places[prompt.layer]], self.recipe.storage
        if layer.key_scale is not None:
            layer.key_scale.of(row).fit(entries.keys, entries.positions != FREE)
        if layer.compact is not None:
            layer.compact, entries = write_compact(
                layer.compact, storage, row, entries, prompt.queries
            )
        if layer.latent is not None:
            entries = layer.latent.write(storage, row, entries, prompt.hidden)
        whole = [(layer, entries)]
        if layer.merged is not None:
            whole = self._merge(row, layer, layer.merged, entries)
        for one, rest in whole:
            one.write_prompt(self.backend, row, rest, draw.to(one.draw.device), remembered)
        if layer.working is not None:
            worth = self.recipe.strategy.rank_prompt(prompt)
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
        rest = write_merged(parts, self.recipe.storage, row, both)
        return list(zip((self.layers[layer.index - 1], layer), rest, strict=True))

    def _entries(self, prompt: Prompt, share: Share) -> Entries:
        length = prompt.length
        # The order of what is kept matters where a part of it is frozen.
        in_order = prompt.by_position or length <= self.recipe.budget.nominal(length)
        if in_order and length <= least(share):
            return prompt.whole()
        entries = self.recipe.compressor.compress(prompt, share)
        count = entries.positions.shape[1]
        if count != most(share):
            raise ScopeError(
                f"the compressor {self.recipe.compressor.name} answers {count} entries a head "
                f"for a share of {most(share)}; fill what is missing with FREE"
            )
        return entries

    @torch.no_grad()
    def attend(
        self,
        layer_idx: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        sliding_window: int | None,
        rotation: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Append one token per row, attend to all that is held, then evict what must go.

        A layer without slots attends to what another holds after that.

        Args:
            layer_idx: which layer.
            queries: ``[B, H_q, 1, D]``, after RoPE unless ``rotation`` is given.
            keys: ``[B, H_kv, 1, D]``, likewise.
            values: ``[B, H_kv, 1, D]``.
            scaling: factor on the query-key products.
            sliding_window: tokens back that the query may look, itself included; None for all.
            rotation: ``[B, D]`` cos and sin of RoPE, still to be applied.

        Returns:
            ``[B, H_q, 1, D]`` attention output.
        """
        keys, values = self._cached_heads(keys, queries), self._cached_heads(values, queries)
        new = NewTokens(queries[:, :, 0], keys[:, :, 0], values[:, :, 0], rotation)
        sight = Sight(scaling, sliding_window)
        with torch.cuda.device_of(keys):  # where Triton launches, whatever the tensors' device
            layer = self.layers[self._places[layer_idx]]
            beside = layer.latent or layer.merged
            if beside is not None:
                layer.compact = beside.restored()
            if self.borrows(layer_idx):
                output = look(layer, self.backend, new, sight)
            else:
                output = decode(layer, self.backend, self.recipe, new, sight, self.asks)
            if beside is not None:
                layer.compact = None  # one layer's at a time
        return output[:, :, None]

    @property
    def fused(self) -> bool:
        """Whether steps run in Triton kernels; known after the first prompt."""
        return fuses(self.backend)

    def _cached_heads(self, states: Tensor, queries: Tensor) -> Tensor:
        if self.recipe.cached_heads == "kv":
            return states
        return states.repeat_interleave(queries.shape[1] // states.shape[1], dim=1)

    # --- what transformers asks a cache -----------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far, evicted ones and padding included; 0 for a prompt that comes."""
        if not self.planned or self._admitted:
            return 0
        return self._padded_length + int(self.schedule.now.step.max())

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Attention masks are made for prompts alone, which attend to themselves."""
        return query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        raise ScopeError("beam search is not supported with a SlotCache; set num_beams=1")

    def crop(self, tokens_to_remove: int) -> None:
        raise ScopeError("a SlotCache cannot take tokens back; assisted decoding is not supported")

    # --- what it costs ----------------------------------------------------------------------------

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values allocated on the device, free slots included.

        0 before a prompt came.
        """
        if self.arena is not None:
            return self.arena.kv_bytes
        return sum(layer.kv_bytes for layer in self.layers if layer.is_initialized)

    @property
    def full_share(self) -> float:
        """Share of all steps so far, of every layer and row, that were full; waits for the GPU."""
        working = [layer.working for layer in self.layers if layer.working is not None]
        if not working or not self.schedule.row_steps:
            return self.recipe.strategy.full_share
        full = sum(int(one.refreshes.sum()) for one in working)
        return full / (len(working) * self.schedule.row_steps)

    def held_bytes(self) -> Counts:
        """``[B]`` bytes of the keys and values that this step's attention may read."""
        schedule = self.schedule
        compact = self.recipe.storage.compact(schedule.kept)
        held = schedule.now.lengths + schedule.losses - compact
        held *= self.layers[0].vacant.shape[1]  # of all heads
        if self.arena is not None:
            held = np.maximum(held - self.arena.missing, 0)  # idle rows hold nothing
        of_one = [2 * layer.keys.shape[-1] * layer.keys.itemsize for layer in self.layers]
        beside = [one.latent or one.merged or one.compact for one in self.layers]
        of_compact = [0 if one is None else one.token_bytes for one in beside]
        readers = np.array([self.recipe.sharing.readers(owner) for owner in self.plan.owners])
        return readers * np.array(of_one) @ held + readers * np.array(of_compact) @ compact
