"""The whole prompt: no prefill compression."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scope.methods.prefill import PrefillCompressor
from scope.methods.prompt import PromptAttention


@dataclass(frozen=True)
class ALLKV(PrefillCompressor):
    """Keeps every prompt token."""

    name: ClassVar[str] = "ALLKV"

    def capacities(self, prompt_length: int, num_layers: int) -> list[int]:
        return [prompt_length] * num_layers

    def nominal_capacity(self, prompt_length: int) -> int:
        return prompt_length

    def keep(self, attention: PromptAttention, capacity: int) -> Tensor:
        positions = torch.arange(capacity, device=attention.keys.device)
        return positions.expand(attention.keys.shape[0], -1)
