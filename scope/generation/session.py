"""Rows that are prefilled one by one and decode together."""

import warnings
from collections.abc import Sequence
from functools import cached_property, partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from scope.attention.support import attention_modules
from scope.cache.cache import SlotCache
from scope.errors import ScopeError
from scope.generation.fused import fused_step, obstacle
from scope.generation.graph import Graphed
from scope.generation.work import Work
from scope.methods.recipe import Configuration


class Session:
    """A batch of rows: `admit` a prompt to each, `step` with any next tokens, `release` what ended.

    Reading the prompts one by one needs no padding and bounds the memory of prefill by the longest
    prompt. The batch keeps its size, and its slots fit every prompt, so what a row computes depends
    neither on the other rows nor on those before it; in plain torch, only its last bits do, for
    there sums run over as many slots as the fullest row has taken.

    Args:
        model: a patched model.
        compression: what to keep.
        prompts: token ids of all prompts to come, at least one.
        max_new_tokens: T, most tokens that will follow a prompt.
        batch_size: B, rows that decode together; one per prompt if None.

    Attributes:
        cache: the rows' cache.
        work: what was done so far.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        compression: Configuration,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        batch_size: int | None = None,
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.work = Work()
        self.batch_size = batch_size or len(prompts)
        self.cache = SlotCache(
            model.config,
            compression,
            max_new_tokens,
            batch_size=self.batch_size,
            prompt_lengths=[len(prompt) for prompt in prompts],
        )

    @torch.inference_mode()
    def admit(self, row: int, index: int) -> Tensor:
        """Start a row over with a prompt: ``[vocabulary]`` logits of its first new token."""
        self.cache.admit([row])
        self.work.prompts.append(len(self.prompts[index]))
        return self._forward(torch.tensor([self.prompts[index]]))[0]

    def release(self, row: int) -> None:
        """End a row; steps pass it by until another prompt is admitted to it."""
        self.cache.schedule.release(row)

    def prefill(self) -> Tensor:
        """Admit the i-th prompt to the i-th row, for all rows: ``[B, vocabulary]`` logits."""
        return torch.stack([self.admit(row, row) for row in range(self.batch_size)])

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Feed one token per row, ``[B]``: ``[B, vocabulary]`` logits of the next.

        Rows without a prompt take any token, and their logits mean nothing. On a GPU nothing waits
        for the step, and its logits last until the next one.
        """
        if self._fast is None:
            return self._forward(tokens[:, None])
        if self._attention.config is not self._patch:
            raise ScopeError(
                "the `patch` that this session decoded in was left, and the weights of its graph "
                "with it; make another session inside the new block"
            )
        tokens = tokens.to(self.model.device)
        self.cache.begin_forward(len(tokens), 1, None, tokens.device)
        with torch.cuda.device_of(tokens):  # where Triton launches and graphs are recorded
            logits = self._fast(tokens, self.cache.kind)
        self.work.seconds["capture"] = self._fast.seconds
        return logits

    @cached_property
    def _fast(self) -> Graphed | None:
        if self.model.device.type != "cuda":
            return None
        reason = obstacle(self.model, self.cache)
        if reason is None:
            # What tells one patch of a model from the next, looked up once: a step has no time.
            self._attention = attention_modules(self.model)[0]
            self._patch = self._attention.config
            return Graphed(partial(fused_step, self.model, self.cache))
        warnings.warn(f"decoding goes the slow way: {reason}", stacklevel=2)
        return None

    def _forward(self, tokens: Tensor) -> Tensor:
        device = self.model.device
        if device.type == "cuda" and not tokens.is_cuda:
            tokens = tokens.pin_memory()  # or copying it would wait for all that came before
        output = self.model(
            input_ids=tokens.to(device, non_blocking=True),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]
