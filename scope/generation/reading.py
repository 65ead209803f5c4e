"""Reading prompts, short ones as records: one graph is launched instead of hundreds of kernels.

A graph has one shape, so prompts are padded behind their end, where causal attention lets nobody
look. What their layers give lies in one place, and is compressed for all of them at once, outside
of any record. How much a prompt is padded depends on its own length alone; whether it is recorded,
which changes no number, on how many have that length.
"""

import warnings
import weakref
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from scope.cache.cache import SlotCache
from scope.generation.fused import fused_prompt
from scope.generation.graph import Graphed

_STEP = 128  # lengths are padded to its multiples
# Bytes that the states of all layers may take; 0 reads every prompt as it is. One that takes more
# keeps a GPU busy for longer than the host needs to launch its layers one by one.
_ROOM = 2**29
# Prompts of one padded length below which it is not recorded: the first is read as it is, and
# recording with the second takes longer than launching.
_OFTEN = 5
_RECORDS = 8  # of a session, as each takes memory and patience; the most frequent lengths


def sent(tokens: Tensor, device: torch.device) -> Tensor:
    """Tokens on a device, without waiting for it."""
    if device.type == "cuda" and not tokens.is_cuda:
        tokens = tokens.pin_memory()  # or copying it would wait for all that came before
    return tokens.to(device, non_blocking=True)


class PromptReader:
    """Reads the prompts of a session, one by one.

    Args:
        model: one without `prompt_obstacle`.
        cache: what they go into.
        lengths: of all prompts to come.
    """

    def __init__(self, model: PreTrainedModel, cache: SlotCache, lengths: Sequence[int]) -> None:
        self._model, self._cache = model, cache
        attention = model.model.layers[0].self_attn
        self._scaling, self._like = attention.scaling, attention.q_proj.weight
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        layers, head_dim = len(model.model.layers), attention.head_dim
        heads = [projection.out_features // head_dim for projection in projections]
        self._longest = _ROOM // (layers * sum(heads) * head_dim * self._like.itemsize)
        cache.make_room(self._like.new_empty(1, heads[1], 0, head_dim), heads[0])
        counts = Counter(_padded(length) for length in lengths if self._pads(length))
        frequent = counts.most_common(_RECORDS)
        self._frequent = {padded for padded, count in frequent if count >= _OFTEN}
        longest = max(counts, default=0)
        self._states = [self._like.new_empty(layers, one, longest, head_dim) for one in heads]
        self._log_sum_exp: Tensor | None = None
        # A record that held its reader would keep a session's slots until Python looks for circles.
        own: Any = weakref.proxy(self)
        read = partial(PromptReader._read, own)
        self._recorded: Graphed | None = Graphed(read, "reading prompts")

    def __call__(self, tokens: Sequence[int]) -> Tensor:
        """Read an admitted prompt: ``[vocabulary]`` logits of its first new token."""
        model, cache, device, length = self._model, self._cache, self._model.device, len(tokens)
        prompt = torch.tensor(tokens)
        with torch.cuda.device_of(self._like):  # where Triton launches and graphs are recorded
            if self._pads(length):
                return self._read_padded(prompt)
            prompt = sent(prompt, device)
            positions = cache.begin_forward(1, length, None, device, prompt[None])[0]
            return fused_prompt(model, cache, prompt, positions, positions[-1:], cache.store_prompt)

    def _pads(self, length: int) -> bool:
        return _padded(length) <= self._longest and self._cache.stores_together(length)

    def _read_padded(self, prompt: Tensor) -> Tensor:
        cache, length = self._cache, len(prompt)
        cache.begin_forward(1, length, None, prompt.device, prompt[None])
        behind = torch.tensor([0] * (_padded(length) - length) + [length - 1])
        given = sent(torch.cat([prompt, behind, cache.draws]), self._like.device)
        logits = self._logits(given[:-1])
        queries, keys, values = (part[:, :, :length] for part in self._states)
        sums = None if self._log_sum_exp is None else self._log_sum_exp[:, :, :length]
        cache.store_together(queries, keys, values, self._scaling, sums, given[-1])
        return logits

    def _logits(self, given: Tensor) -> Tensor:
        """What `_read` gives, of a record where there is one."""
        if self._recorded is not None and len(given) - 1 in self._frequent:
            try:
                return self._recorded(given, len(given)).clone()
            except torch.OutOfMemoryError:  # a record only saves time
                warnings.warn("prompts are read without CUDA graphs: out of memory", stacklevel=2)
                self._recorded = None
        return self._read(given)

    def _read(self, given: Tensor) -> Tensor:
        """Logits of a padded prompt, behind which stands where its end is."""
        tokens, last = given[:-1], given[-1:]
        positions = torch.arange(len(tokens), device=given.device)
        return fused_prompt(self._model, self._cache, tokens, positions, last, self._keep)

    def _keep(
        self,
        layer_idx: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        sliding_window: int | None,
        hidden: Tensor,
        log_sum_exp: Tensor | None,
    ) -> None:
        """Copy what a layer gives to where all layers' lies; see `SlotCache.store_prompt`."""
        length = queries.shape[2]
        for there, own in zip(self._states, (queries, keys, values), strict=True):
            there[layer_idx, :, :length] = own[0]
        if log_sum_exp is not None:
            if self._log_sum_exp is None:
                self._log_sum_exp = log_sum_exp.new_empty(self._states[0].shape[:3])
            self._log_sum_exp[layer_idx, :, :length] = log_sum_exp[0]


def _padded(length: int) -> int:
    return -(-length // _STEP) * _STEP
