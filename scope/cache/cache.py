"""The cache that a model generates with: slots, and the counts that say which of them to free."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from scope.cache.admission import draws_of, read_mask
from scope.cache.layer import SlotLayer
from scope.cache.lending import Lending
from scope.cache.plan import CachePlan, arena_needed, most_compact, slots_needed
from scope.cache.schedule import Schedule
from scope.cache.sending import CountSender
from scope.cache.step import decode, look
from scope.cache.writing import PromptWriter
from scope.errors import ScopeError
from scope.kernels import fuses
from scope.kernels.tensors import NewTokens, Sight
from scope.methods.prompt import Prompt
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
        writer: what fills the slots with prompts.
        lending: keys and values of prompts that several layers attend to.
        positions: ``[B]`` int32, of this step's tokens.
        draws: ``[b]`` int64, a 32-bit number that chance makes of each admitted prompt.
    """

    layers: list[SlotLayer]  # type: ignore[assignment]
    planned: bool = False
    plan: CachePlan
    schedule: Schedule
    asks: bool
    writer: PromptWriter
    positions: Tensor
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
        if self.planned:
            del self.writer, self._send_counts  # and the memory that they hold
        vars(self).pop("_token_bytes", None)
        self.planned = False
        self.prefilling = False
        self.lending = Lending(self.recipe.sharing.sources)
        self._admitted: list[int] = []
        self._padded_length = 0

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
        if len(rows) != batch_size:
            raise ScopeError(f"{len(rows)} rows were admitted, but {batch_size} prompts came")
        if attention_mask is None:  # what there is to know, nobody has to wait for
            real = torch.ones(batch_size, num_tokens, dtype=torch.bool, device=device)
            lengths = [num_tokens] * batch_size
        else:
            real, lengths = read_mask(batch_size, num_tokens, attention_mask)
        if not self.planned:
            self._plan(lengths)
        self.lending.forget()
        self.writer.forget()
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
        seed = self.recipe.score.seed if self.recipe.score else 0
        self.draws = draws_of(positions, real, tokens, seed)
        return positions

    def _plan(self, lengths: list[int]) -> None:
        prompt_lengths = self._prompt_lengths or lengths
        self._planned_lengths = set(prompt_lengths)
        batch_size = self._batch_size or len(lengths)
        self.schedule = Schedule(self.recipe, len(self.layers), batch_size)
        self.plan = CachePlan.make(self.config, self.recipe, self.max_new_tokens, prompt_lengths)
        self.layers = self.plan.layers()
        self.writer = PromptWriter(self.recipe, self.plan, self.schedule, self.layers, self._places)
        self._send_counts = CountSender(self.recipe, self.schedule, self.layers)
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
        self.positions = self._send_counts(device)
        return self.positions[:, None]

    @property
    def kind(self) -> tuple[bool, bool]:
        """What this step does beside attending, which its record depends on."""
        return self.asks, self.schedule.may_be_full

    # --- one layer of that forward ----------------------------------------------------------------

    def borrows(self, layer_idx: int) -> bool:
        """Whether a layer has no slots of its own."""
        return layer_idx in self.recipe.sharing.sources

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
            self.writer.allocate(layer, keys, queries.shape[1])
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
                backend=self.writer.backend,
                log_sum_exp=None if log_sum_exp is None else log_sum_exp[i, :, start:],
                heads=self.recipe.heads,
            )
            self.writer.write(row, prompt, self.draws[i])
        if layer.index == len(self.layers) - 1:
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
                self.writer.allocate(layer, like, query_heads)

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
            and all(layer.is_initialized and layer.is_like_others for layer in layers)
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
            backend=self.writer.backend,
            log_sum_exp=None if log_sum_exp is None else log_sum_exp.flatten(0, 1),
        )
        self.writer.write_together(row, prompt, (layers, heads), draw)
        self._admitted = []

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
                output = look(layer, self.writer.backend, new, sight)
            else:
                output = decode(layer, self.writer.backend, self.recipe, new, sight, self.asks)
            if beside is not None:
                layer.compact = None  # one layer's at a time
        return output[:, :, None]

    @property
    def fused(self) -> bool:
        """Whether steps run in Triton kernels; known after the first prompt."""
        return fuses(self.writer.backend)

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
        if self.planned and self.writer.arena is not None:
            return self.writer.arena.kv_bytes
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
        if self.writer.arena is not None:
            held = np.maximum(held - self.writer.arena.missing, 0)  # idle rows hold nothing
        of_one, of_compact = self._token_bytes
        return of_one @ held + of_compact @ compact

    @cached_property
    def _token_bytes(self) -> tuple[Counts, Counts]:
        """``[N]`` bytes that a token takes: of one head in slots, of all heads beside them.

        As often as they are read in a step.
        """
        of_one = [2 * layer.keys.shape[-1] * layer.keys.itemsize for layer in self.layers]
        beside = [one.latent or one.merged or one.compact for one in self.layers]
        of_compact = [0 if one is None else one.token_bytes for one in beside]
        readers = np.array([self.recipe.sharing.readers(owner) for owner in self.plan.owners])
        return readers * np.array(of_one), readers * np.array(of_compact)
