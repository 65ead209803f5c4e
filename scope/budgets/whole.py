"""No budget: every layer keeps the whole prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from scope.methods.budget import Budget


@dataclass(frozen=True)
class Whole(Budget):
    """As many tokens as the prompt has."""

    name: ClassVar[str] = "whole"
    about: ClassVar[str] = "everything"

    def ceiling(self, length: int, num_layers: int) -> Sequence[int]:
        return [length] * num_layers
