"""SnapKV: keep what the end of the prompt looks at."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from scope.methods.prefill import ScoredCompressor
from scope.methods.prompt import PromptAttention


@dataclass(frozen=True)
class SnapKV(ScoredCompressor):
    """Scores the prompt by the attention of its last w queries, smoothed over neighbours.

    SnapKV, arXiv 2404.14469, section 4. The scores of a group's query heads are reduced before
    pooling. ``avgpool`` counts the zeros beyond both ends of the prompt.

    Attributes:
        kernel_size: odd width of the pooling kernel, in tokens.
        pooling: ``maxpool`` or ``avgpool``.
    """

    name: ClassVar[str] = "SnapKV"

    kernel_size: int
    pooling: Literal["maxpool", "avgpool"]

    def scores(self, attention: PromptAttention) -> Tensor:
        first_window_row = attention.length - self.window_size
        sums = attention.column_sums(first_row=first_window_row)[:, :first_window_row]
        pool = functional.max_pool1d if self.pooling == "maxpool" else functional.avg_pool1d
        return pool(sums, self.kernel_size, stride=1, padding=self.kernel_size // 2)
