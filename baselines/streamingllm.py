"""StreamingLLM: attention sinks and a sliding window."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from scope.budgets.uniform import Uniform
from scope.errors import ScopeError
from scope.methods.budget import Budget, Share, most, on_device
from scope.methods.compressor import Compressor
from scope.methods.fidelity import Fidelity
from scope.methods.options import option
from scope.methods.prompt import FREE, Prompt
from scope.methods.score import Score
from scope.methods.strategy import Counts, RecentWindow, Strategy, Window
from scope.scores.recent import Recent

NUM_SINKS = 4


@dataclass(frozen=True)
class StreamingLLM(Compressor):
    """Keeps the first 4 tokens and the last C - 4.

    StreamingLLM, arXiv 2309.17453, section 3. Tokens keep their true positions; the original
    renumbers them inside the cache.
    """

    name: ClassVar[str] = "StreamingLLM"
    about: ClassVar[str] = "the first 4 tokens and the last C − 4"
    budget: ClassVar[type[Budget]] = Uniform
    headwise: ClassVar[bool] = True

    @classmethod
    def under(cls, fidelity: Fidelity) -> type[Compressor]:
        return PublishedStreamingLLM if fidelity.streamingllm_sinks == "half" else cls

    def check(self, budget: Budget) -> None:
        if budget.capacity is not None and budget.capacity <= NUM_SINKS:
            raise ScopeError(
                f"max_capacity_prompt {budget.capacity} leaves StreamingLLM no room beside its "
                f"{NUM_SINKS} sinks; it must be larger"
            )

    def sinks(self, share: int) -> int:
        """How many of the first tokens stay."""
        return min(NUM_SINKS, share - 1)

    def keep(self, prompt: Prompt, share: Share) -> Tensor:
        device, widest = prompt.keys.device, most(share)
        shares = on_device(share, device).expand(len(prompt.keys))[:, None]
        number = torch.arange(widest, device=device)
        from_end = prompt.length - shares + number
        kept = torch.where(number < self.sinks(widest), number, from_end)
        return kept.where(number < shares, FREE)


@dataclass(frozen=True)
class PublishedStreamingLLM(StreamingLLM):
    """As the published SCOPE code has it: the first C - w tokens and the last w."""

    window_size: int | None = option(None, "w, last prompt tokens always kept (default C // 2)")

    def check(self, budget: Budget) -> None:
        capacity, window = budget.capacity, self.window_size
        if capacity is not None and window is not None and not 1 <= window < capacity:
            raise ScopeError(
                f"window_size {window} leaves no room in max_capacity_prompt {capacity}; "
                "it must be at least 1 and smaller"
            )

    def sinks(self, share: int) -> int:
        return share - (share // 2 if self.window_size is None else self.window_size)


@dataclass(frozen=True)
class StreamingLLMDecoding(Window):
    """One budget of C + W over prompt and generation: the first 4 entries and the most recent."""

    name: ClassVar[str] = "slm"
    about: ClassVar[str] = "baseline: one budget C + W, the first 4 tokens and the last others stay"
    unified: ClassVar[bool] = True
    score: ClassVar[type[Score] | None] = Recent
    takes_score: ClassVar[bool] = False

    @classmethod
    def under(cls, fidelity: Fidelity) -> type[Strategy]:
        return PublishedStreamingLLMDecoding if fidelity.streamingllm_sinks == "half" else cls

    def protected(self, frozen: Counts, base: Counts) -> Counts:
        return np.minimum(NUM_SINKS, base + self.decoding_window_size - 1)


@dataclass(frozen=True)
class PublishedStreamingLLMDecoding(RecentWindow):
    """As the published SCOPE code has it: the first C + W - R entries stay, and R slide."""

    name: ClassVar[str] = StreamingLLMDecoding.name
    about: ClassVar[str] = StreamingLLMDecoding.about
    unified: ClassVar[bool] = True
    score: ClassVar[type[Score] | None] = Recent
    takes_score: ClassVar[bool] = False

    def protected(self, frozen: Counts, base: Counts) -> Counts:
        return base + self.decoding_window_size - self.recent
