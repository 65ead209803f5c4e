"""No decode compression: every generated token stays."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from scope.methods.strategy import NEVER, Counts, Strategy


@dataclass(frozen=True)
class NoEviction(Strategy):
    """The decode pool grows by one token a step."""

    name: ClassVar[str] = "None"
    about: ClassVar[str] = "everything"
    takes_score: ClassVar[bool] = False

    def pool(self, step: Counts) -> Counts:
        return np.full_like(step, NEVER)
