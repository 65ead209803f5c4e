"""A batch of sequences that are prefilled one by one and then decoded together."""

import warnings
from collections.abc import Sequence
from functools import cached_property, partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from scope.cache.cache import SlotCache
from scope.generation.fused import fused_step, obstacle
from scope.generation.graph import Graphed
from scope.methods.compression import Compression


class Session:
    """One prompt per row; `prefill` once, then `step` with any next tokens.

    Reading the prompts one by one needs no padding and bounds the memory of prefill by the longest
    prompt.

    Args:
        model: a patched model.
        compression: what to keep.
        prompts: token ids of each row's prompt, at least one.
        max_new_tokens: T, most tokens that will follow a prompt.

    Attributes:
        cache: the rows' cache.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        compression: Compression,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.cache = SlotCache(
            model.config,
            compression,
            max_new_tokens,
            batch_size=len(prompts),
            prompt_lengths=[len(prompt) for prompt in prompts],
        )

    @torch.inference_mode()
    def prefill(self) -> Tensor:
        """Read all prompts: ``[B, vocabulary]`` logits of the first new token."""
        logits = []
        for row, prompt in enumerate(self.prompts):
            self.cache.admit([row])
            logits.append(self._forward(torch.tensor([prompt])))
        return torch.cat(logits)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Feed one token per row, ``[B]``: ``[B, vocabulary]`` logits of the next.

        On a GPU nothing waits for the step, and its logits last until the next one.
        """
        if self._fast is None:
            return self._forward(tokens[:, None])
        tokens = tokens.to(self.model.device)
        self.cache.begin_forward(len(tokens), 1, None, tokens.device)
        return self._fast(tokens)

    @cached_property
    def _fast(self) -> Graphed | None:
        if self.model.device.type != "cuda":
            return None
        reason = obstacle(self.model, self.cache)
        if reason is None:
            return Graphed(partial(fused_step, self.model, self.cache))
        warnings.warn(f"decoding goes the slow way: {reason}", stacklevel=2)
        return None

    def _forward(self, tokens: Tensor) -> Tensor:
        output = self.model(
            input_ids=tokens.to(self.model.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]
