"""SCOPE (Adaptive): a decode pool that grows with the generation."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from scope.methods.decoding import NEVER, Counts, DecodingStrategy


@dataclass(frozen=True)
class Adaptive(DecodingStrategy):
    """Keeps R + (t - R)(W - R)/(T - R) decode tokens: R at t = R, W at t = T.

    Selection begins at t > R, earlier than Slide's (arXiv 2412.13649, equation 4).

    Attributes:
        decoding_window_size: W.
        decoding_recent_size: R, the most recent tokens, never evicted.
        max_new_tokens: T, length of the generation.
        adaptive_window: ``capped`` is the formula above; ``uncapped`` the published code's
            R + (t-1)//delta, which ends a few percent above W.
        delta: steps per token of growth, for ``uncapped``.
    """

    name: ClassVar[str] = "adaptive"

    decoding_window_size: int
    decoding_recent_size: int
    max_new_tokens: int
    adaptive_window: Literal["capped", "uncapped"]
    delta: int

    def pool(self, step: Counts) -> Counts:
        recent, window, total = (
            self.decoding_recent_size,
            self.decoding_window_size,
            self.max_new_tokens,
        )
        if self.adaptive_window == "uncapped":
            return recent + (step - 1) // self.delta
        if total <= recent:
            return np.full_like(step, NEVER)
        return recent + np.maximum(step - recent, 0) * (window - recent) // (total - recent)
