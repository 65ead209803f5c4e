"""SCOPE (Adaptive): a decode pool that grows with the generation."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from scope.errors import ScopeError
from scope.methods.fidelity import Fidelity
from scope.methods.options import option
from scope.methods.score import Score
from scope.methods.strategy import NEVER, Counts, RecentWindow, Strategy
from scope.scores.current import Current


@dataclass(frozen=True, kw_only=True)
class Adaptive(RecentWindow):
    """Keeps R + (t - R)(W - R)/(T - R) decode tokens: R at t = R, W at t = T.

    Selection begins at t > R, earlier than Slide's (arXiv 2412.13649, equation 4).

    Attributes:
        max_new_tokens: T, length of the generation.
    """

    name: ClassVar[str] = "adaptive"
    about: ClassVar[str] = "R + (t−R)(W−R)/(T−R) tokens, growing from R to W"
    score: ClassVar[type[Score] | None] = Current

    max_new_tokens: int

    @classmethod
    def under(cls, fidelity: Fidelity) -> type[Strategy]:
        return UncappedAdaptive if fidelity.adaptive_window == "uncapped" else cls

    def pool(self, step: Counts) -> Counts:
        recent, window, total = self.recent, self.decoding_window_size, self.max_new_tokens
        if total <= recent:
            return np.full_like(step, NEVER)
        return recent + np.maximum(step - recent, 0) * (window - recent) // (total - recent)


@dataclass(frozen=True, kw_only=True)
class Paced(Adaptive):
    """Goes by whole steps per token of growth, as the published SCOPE code does."""

    delta: int | None = option(None, "steps per token of growth (default (T-R)//(W-R))")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delta is not None and self.delta < 1:
            raise ScopeError(f"delta is {self.delta}; it must be at least 1")

    @property
    def pace(self) -> int:
        """Steps per token of growth."""
        if self.delta is not None:
            return self.delta
        room = self.decoding_window_size - self.recent
        return max((self.max_new_tokens - self.recent) // room, 1)


@dataclass(frozen=True, kw_only=True)
class UncappedAdaptive(Paced):
    """As the published SCOPE code has it: R + (t-1)//delta, which ends a few percent above W."""

    def pool(self, step: Counts) -> Counts:
        return self.recent + (step - 1) // self.pace
