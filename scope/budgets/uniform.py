"""The same for every layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from scope.methods.budget import Capacity


@dataclass(frozen=True)
class Uniform(Capacity):
    """C tokens in every layer."""

    name: ClassVar[str] = "uniform"
    about: ClassVar[str] = "C in every layer"

    def ceiling(self, length: int, num_layers: int) -> Sequence[int]:
        return [self.max_capacity_prompt] * num_layers
