"""PyramidKV: SnapKV's scores, and more tokens for the lower layers."""

from dataclasses import dataclass
from typing import ClassVar

from baselines.snapkv import SnapKV
from scope.methods.pyramid import prompt_pyramid


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """Layer budgets form an arithmetic series around C; within a layer it is SnapKV.

    PyramidKV, arXiv 2406.02069, section 3: the last layer keeps (C - w)/20 tokens besides its
    window. The budgets sum to layers × C for every prompt longer than C.

    Attributes:
        pyramid_at_every_length: if false, prompts shorter than 2(C - w) get C in every layer and
            longer ones the published code's rounding.
    """

    name: ClassVar[str] = "PyramidKV"

    pyramid_at_every_length: bool

    def capacities(self, prompt_length: int, num_layers: int) -> list[int]:
        pyramid = prompt_pyramid(
            self.max_capacity_prompt,
            self.window_size,
            prompt_length,
            num_layers,
            every_length=self.pyramid_at_every_length,
        )
        return pyramid or super().capacities(prompt_length, num_layers)
