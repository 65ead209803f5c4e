"""KV-Compress: squared attention, and blocks of all layers and heads that compete for the slots."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope.budgets.blocks import Blocks, SquaredAttention
from scope.methods.budget import Budget, Part
from scope.methods.compressor import ScoredCompressor
from scope.methods.prompt import Prompt


@dataclass(frozen=True)
class KVCompress(SquaredAttention, ScoredCompressor):
    """Keeps what the blocks that are not evicted hold; `Blocks` says of which heads they are.

    KV-Compress, arXiv 2410.00161: evicted once, after the prompt. What the decoding strategy
    evicts, every head does by itself; the continual variant, in which heads go on to compete for
    blocks at every step, is not here, as counts of a step depend on lengths alone.
    """

    name: ClassVar[str] = "KVCompress"
    about: ClassVar[str] = "what the last w queries attend to, squared; blocks of all heads compete"
    budget: ClassVar[type[Budget]] = Blocks
    own_choice: ClassVar[Part | None] = "layer"

    @property
    def last_kept(self) -> int:
        return self.protected_window

    def score(self, prompt: Prompt) -> Tensor:
        return self.metric(prompt)
