"""RPC: a decode pool that is a part of the generation."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scope.errors import ScopeError
from scope.methods.options import option
from scope.methods.score import Score
from scope.methods.strategy import Counts, Strategy
from scope.scores.rpc import RPCScore


@dataclass(frozen=True)
class RPC(Strategy):
    """After every P steps keeps t/c + R decode tokens: the last R and the best scored others.

    Reasoning path compression, arXiv 2505.13866, section 4. The prompt stays. It needs no T, and
    saves memory up to a factor of c, not down to a size.
    """

    name: ClassVar[str] = "rpc"
    about: ClassVar[str] = "t/c + R tokens, cut to every P steps"
    score: ClassVar[type[Score] | None] = RPCScore

    period: int = option(1024, "P, steps from one eviction to the next")
    keep_one_in: int = option(4, "c, generated tokens of which one is kept")
    decoding_recent_size: int = option(32, "R, most recent tokens, never evicted")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ScopeError(f"{name} is {value}; it must be at least 1")

    @property
    def recent(self) -> int:
        return self.decoding_recent_size

    def pool(self, step: Counts) -> Counts:
        return step // self.keep_one_in + self.recent

    def due(self, step: Counts) -> NDArray[np.bool_]:
        return step % self.period == 0
