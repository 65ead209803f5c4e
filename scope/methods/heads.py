"""Whether the heads of a layer choose what they keep each for itself, or together."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope.methods.options import option


@dataclass(frozen=True)
class Heads:
    """One kept set per head, or one per layer, which is all that an engine with pages can hold.

    What tokens compete by is then the mean over the heads of a layer, for prompt and generation.
    """

    name: ClassVar[str] = "any method"

    share_heads: bool = option(
        False, "whether all heads of a layer keep the same tokens, by the mean of their scores"
    )

    def joined(self, scores: Tensor, heads: int) -> Tensor:
        """Scores ``[..., H or 1, n]`` as every one of so many heads takes them."""
        if self.share_heads:
            scores = scores.mean(dim=-2, keepdim=True)
        return scores.expand(*scores.shape[:-2], heads, scores.shape[-1])
