"""Slide in bursts: a pool that is cut only now and then."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scope.errors import ScopeError
from scope.methods.options import option
from scope.methods.score import Score
from scope.methods.strategy import Counts, RecentWindow
from scope.scores.snapkv_decode import SnapKVDecode


@dataclass(frozen=True)
class Periodic(RecentWindow):
    """Lets W decode tokens become W + P, then keeps the last R and the best scored others of W.

    How scores are used that cost too much for every step (R-KV, arXiv 2505.24133, section 3, with a
    buffer of P = 128; `DecodingPress` of kvpress). It takes W + P slots; P = 1 is Slide.
    """

    name: ClassVar[str] = "periodic"
    about: ClassVar[str] = "W tokens as slide, cut to every P steps: up to W + P in between"
    score: ClassVar[type[Score] | None] = SnapKVDecode

    period: int = option(128, "P, steps from one eviction to the next")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.period < 1:
            raise ScopeError(f"period is {self.period}; it must be at least 1")

    def due(self, step: Counts) -> NDArray[np.bool_]:
        over = step - self.decoding_window_size
        return (over > 0) & (over % self.period == 0)
