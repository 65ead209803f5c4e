"""MorphKV: what the last queries attend to, at every step."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from scope.methods.options import option
from scope.methods.score import Slots
from scope.scores.last_queries import LastQueries


@dataclass(frozen=True)
class MorphKV(LastQueries):
    """The sum or the largest of the attention of the last w queries; the last w tokens stay.

    MorphKV, arXiv 2503.00979, section 3: with the strategy ``slide`` one token leaves at every
    step, as there.
    """

    name: ClassVar[str] = "morphkv"
    about: ClassVar[str] = "the sum or largest of the last w queries' attention"

    last_queries: int = option(32, "w, last queries of the generation that judge what is held")
    fusion: Literal["sum", "max"] = option("sum", "how the last queries' attention becomes one")

    def worth(self, slots: Slots) -> Tensor:
        attention = self.received(slots, largest=self.fusion == "max")
        return self.with_last(slots, attention)
