"""Reading prompts, short ones as records: one graph is launched instead of hundreds of kernels.

A graph has one shape, so prompts are padded behind their end, where causal attention lets nobody
look. What their layers give lies in one place, and is compressed for all of them at once. How much
a prompt is padded depends on its own length alone.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from scope.cache.cache import SlotCache
from scope.generation.fused import fused_prompt
from scope.generation.graph import Graphed

_STEP = 128  # lengths are padded to its multiples
# Bytes that the states of all layers may take. A prompt that takes more keeps a GPU busy for longer
# than the host needs to launch its layers one by one.
_ROOM = 2**29


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
        longest: of the prompts to come.
    """

    def __init__(self, model: PreTrainedModel, cache: SlotCache, longest: int) -> None:
        self._model, self._cache = model, cache
        attention = model.model.layers[0].self_attn
        self._scaling, self._like = attention.scaling, attention.q_proj.weight
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        layers, head_dim = len(model.model.layers), attention.head_dim
        heads = [projection.out_features // head_dim for projection in projections]
        most = _ROOM // (layers * sum(heads) * head_dim * self._like.itemsize)
        self._longest = min(most // _STEP * _STEP, _padded(longest))
        self._shapes = [(layers, one, self._longest, head_dim) for one in heads]
        self._states: list[Tensor] = []
        self._log_sum_exp: Tensor | None = None
        self._recorded: Callable[[Tensor, int], Tensor] = Graphed(self._read, "reading prompts")
        cache.make_room(self._like.new_empty(1, heads[1], 0, head_dim), heads[0])

    def __call__(self, tokens: Sequence[int]) -> Tensor:
        """Read an admitted prompt: ``[vocabulary]`` logits of its first new token."""
        model, cache, device, length = self._model, self._cache, self._model.device, len(tokens)
        prompt = torch.tensor(tokens)
        with torch.cuda.device_of(self._like):  # where Triton launches and graphs are recorded
            if length <= self._longest and cache.stores_together(length):
                return self._read_padded(prompt)
            prompt = sent(prompt, device)
            positions = cache.begin_forward(1, length, None, device, prompt[None])[0]
            return fused_prompt(model, cache, prompt, positions, positions[-1:], cache.store_prompt)

    def _read_padded(self, prompt: Tensor) -> Tensor:
        cache, length = self._cache, len(prompt)
        padded = _padded(length)
        cache.begin_forward(1, length, None, prompt.device, prompt[None])
        behind = torch.tensor([0] * (padded - length) + [length - 1])
        given = sent(torch.cat([prompt, behind, cache.draws]), self._like.device)
        if not self._states:
            self._states = [self._like.new_empty(shape) for shape in self._shapes]
        try:
            logits = self._recorded(given[:-1], padded).clone()
        except torch.OutOfMemoryError:  # there is no room for a record, which only saves time
            self._recorded = lambda given, padded: self._read(given)
            logits = self._read(given[:-1])
        queries, keys, values = (part[:, :, :length] for part in self._states)
        sums = None if self._log_sum_exp is None else self._log_sum_exp[:, :, :length]
        cache.store_together(queries, keys, values, self._scaling, sums, given[-1])
        return logits

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
