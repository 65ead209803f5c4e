"""SCOPE (Slide): a decode pool of fixed size."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from scope.methods.decoding import Counts, DecodingStrategy


@dataclass(frozen=True)
class Slide(DecodingStrategy):
    """Keeps W decode tokens: the last R and the W - R best scored of the others.

    From step t > W on one token leaves at every step (arXiv 2412.13649, section 3.2, "Slide").

    Attributes:
        decoding_window_size: W.
    """

    name: ClassVar[str] = "slide"

    decoding_window_size: int

    def pool(self, step: Counts) -> Counts:
        return np.full_like(step, self.decoding_window_size)
