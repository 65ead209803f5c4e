"""SnapKV: keep what the end of the prompt looks at."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from scope.budgets.uniform import Uniform
from scope.errors import ScopeError
from scope.kernels.tensors import GroupReduction
from scope.methods.budget import Budget, Part
from scope.methods.compressor import ScoredCompressor
from scope.methods.options import option
from scope.methods.prompt import Prompt


@dataclass(frozen=True)
class SnapKV(ScoredCompressor):
    """Scores the prompt by the attention of its last w queries, smoothed over neighbours.

    SnapKV, arXiv 2404.14469, section 4. The scores of a group's query heads are reduced before
    pooling. ``avgpool`` counts the zeros beyond both ends of the prompt.
    """

    name: ClassVar[str] = "SnapKV"
    about: ClassVar[str] = "what the last w queries attend to, pooled over neighbours"
    budget: ClassVar[type[Budget]] = Uniform
    published_delta: ClassVar[int | None] = 15
    headwise: ClassVar[bool] = True
    own_choice: ClassVar[Part | None] = "layer"

    kernel_size: int = option(7, "pooling width of the prompt's scores, odd")
    pooling: Literal["maxpool", "avgpool"] = option("maxpool", "pooling of the prompt's scores")
    group_reduction: GroupReduction = option(
        "mean", "how the attention of the query heads of a KV head becomes one number"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ScopeError(f"kernel_size is {self.kernel_size}; it must be odd and positive")

    def score(self, prompt: Prompt) -> Tensor:
        sums = prompt.received(last=self.window_size, reduction=self.group_reduction)
        pool = functional.max_pool1d if self.pooling == "maxpool" else functional.avg_pool1d
        # One at least: there is no pooling nothing, and what is not before the window is not read.
        before_window = sums[:, : max(prompt.length - self.window_size, 1)]
        return pool(before_window, self.kernel_size, stride=1, padding=self.kernel_size // 2)
