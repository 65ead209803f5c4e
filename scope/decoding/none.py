"""No decode compression: every generated token stays."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from scope.methods.decoding import NEVER, Counts, DecodingStrategy


@dataclass(frozen=True)
class NoEviction(DecodingStrategy):
    """The decode pool grows by one token a step."""

    name: ClassVar[str] = "None"
    evicts: ClassVar[bool] = False

    def pool(self, step: Counts) -> Counts:
        return np.full_like(step, NEVER)
