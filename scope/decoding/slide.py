"""SCOPE (Slide): a decode pool of fixed size."""

from dataclasses import dataclass
from typing import ClassVar

from scope.methods.score import Score
from scope.methods.strategy import RecentWindow
from scope.scores.current import Current


@dataclass(frozen=True)
class Slide(RecentWindow):
    """Keeps W decode tokens: the last R and the W - R best scored of the others.

    From step t > W on one token leaves at every step (arXiv 2412.13649, section 3.2, "Slide").
    """

    name: ClassVar[str] = "slide"
    about: ClassVar[str] = "W tokens: the last R and the best scored others"
    score: ClassVar[type[Score] | None] = Current
