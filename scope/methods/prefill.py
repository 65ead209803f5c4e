"""The interface of prefill compressors: which prompt tokens does each head of a layer keep?"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scope.methods.prompt import PromptAttention


@dataclass(frozen=True)
class PrefillCompressor(ABC):
    """Base of all prefill compressors; a subclass declares the settings it reads as fields.

    Attributes:
        max_capacity_prompt: C, tokens kept of a prompt, per layer and head.
    """

    name: ClassVar[str]

    max_capacity_prompt: int

    def capacities(self, prompt_length: int, num_layers: int) -> list[int]:
        """Tokens that each layer may keep of a prompt; a shorter prompt is kept whole."""
        return [self.max_capacity_prompt] * num_layers

    def nominal_capacity(self, prompt_length: int) -> int:
        """C as the published code's decoding step knows it, the same for every layer."""
        return self.max_capacity_prompt

    @abstractmethod
    def keep(self, attention: PromptAttention, capacity: int) -> Tensor:
        """Choose the tokens to keep.

        Args:
            attention: one prompt in one layer, at least as long as ``capacity``.
            capacity: how many tokens to keep.

        Returns:
            ``[H, capacity]`` int64 prompt positions, distinct within a head.
        """


@dataclass(frozen=True)
class ScoredCompressor(PrefillCompressor):
    """Keeps the last ``window_size`` tokens and the best scored of the others.

    Attributes:
        window_size: w, last prompt tokens that are always kept.
    """

    window_size: int

    @abstractmethod
    def scores(self, attention: PromptAttention) -> Tensor:
        """Score the prompt tokens before the window: ``[H, L - w]``, larger is kept."""

    def keep(self, attention: PromptAttention, capacity: int) -> Tensor:
        best = capacity - self.window_size
        # A stable sort breaks ties by the lower position on every device; topk does not.
        ranked = self.scores(attention).sort(dim=-1, descending=True, stable=True).indices
        window = torch.arange(
            attention.length - self.window_size, attention.length, device=ranked.device
        )
        return torch.cat([ranked[:, :best], window.expand(ranked.shape[0], -1)], dim=1)
