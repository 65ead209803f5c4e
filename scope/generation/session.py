"""Rows that are prefilled one by one and decode together."""

import warnings
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from scope.attention.support import attention_modules
from scope.cache.cache import SlotCache
from scope.errors import ScopeError
from scope.generation.fused import fused_step, longest_prompt, obstacle, prompt_obstacle
from scope.generation.graph import Graphed
from scope.generation.reading import PromptReader, sent
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
        prompt = self.prompts[index]
        self.cache.admit([row])
        self.work.prompts.append(len(prompt))
        if self._reads_fused(len(prompt)):
            self._check_patch()
            return self._reader(prompt)
        return self._forward(torch.tensor([prompt]))[0]

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
        self._check_patch()
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
            return Graphed(partial(fused_step, self.model, self.cache))
        warnings.warn(f"decoding goes the slow way: {reason}", stacklevel=2)
        return None

    def _reads_fused(self, length: int) -> bool:
        if self.model.device.type != "cuda":
            return False
        reason, longest = self._obstacle_to_prompts
        if reason is None and longest is not None and length > longest:
            reason = f"those longer than its sliding window of {longest} take a mask"
        if reason is not None:
            warnings.warn(f"prompts are read the slow way: {reason}", stacklevel=3)
        return reason is None

    @cached_property
    def _obstacle_to_prompts(self) -> tuple[str | None, int | None]:
        """Why the model's prompts are not read fused, and else the longest that are."""
        reason = prompt_obstacle(self.model)
        return reason, None if reason else longest_prompt(self.model)

    @cached_property
    def _reader(self) -> PromptReader:
        return PromptReader(self.model, self.cache, [len(prompt) for prompt in self.prompts])

    @cached_property
    def _patch(self) -> tuple[Any, Any]:
        """What tells one patch of a model from the next, looked up once: a step has no time."""
        attention = attention_modules(self.model)[0]
        return attention, attention.config

    def _check_patch(self) -> None:
        attention, config = self._patch
        if attention.config is not config:
            raise ScopeError(
                "the `patch` that this session began in was left, and the joined weights with it; "
                "make another session inside the new block"
            )

    def _forward(self, tokens: Tensor) -> Tensor:
        output = self.model(
            input_ids=sent(tokens, self.model.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]
