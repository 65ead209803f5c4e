"""SnapKV's score of a prompt, taken of the generation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from scope.methods.options import option
from scope.methods.score import Slots
from scope.scores.last_queries import LastQueries, in_order


@dataclass(frozen=True)
class SnapKVDecode(LastQueries):
    """The attention of the last w queries, smoothed over neighbours; the last w tokens stay.

    SnapKV, arXiv 2404.14469, section 4, asked of a generation now and then ("SnapKV-D" in arXiv
    2512.12008). A window of 7 held tokens, older than the last w, is pooled by its maximum.
    """

    name: ClassVar[str] = "snapkv_decode"
    about: ClassVar[str] = "what the last w queries attend to, pooled over neighbours"

    last_queries: int = option(32, "w, last queries of the generation that judge what is held")

    def worth(self, slots: Slots) -> Tensor:
        older = self.older(slots)
        attention = self.received(slots) * older
        return self.with_last(slots, in_order(slots, attention, max_of_seven))


def max_of_seven(values: Tensor) -> Tensor:
    """Each of ``[B, H, S]``, none negative, becomes the largest of itself and three either side."""
    return functional.max_pool1d(values, kernel_size=7, stride=1, padding=3)
