"""Attention times value norm (VATP, arXiv 2406.12335): a compressor."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope.budgets.uniform import Uniform
from scope.methods.api import Budget, Prompt, ScoredCompressor, option


@dataclass(frozen=True)
class ValueNorm(ScoredCompressor):
    """Scores a token by the attention it receives times the size of what it gives."""

    name: ClassVar[str] = "ValueNorm"
    about: ClassVar[str] = "attention times the norm of the value"
    budget: ClassVar[type[Budget]] = Uniform

    norm: int = option(1, "which norm of the values, 1 or 2")

    def score(self, prompt: Prompt) -> Tensor:
        return prompt.received() * prompt.values.float().norm(p=self.norm, dim=-1)
