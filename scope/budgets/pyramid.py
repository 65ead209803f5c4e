"""Budgets that fall from the first layer to the last (PyramidKV, arXiv 2406.02069, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from scope.errors import ScopeError
from scope.methods.budget import Budget, Capacity, Part
from scope.methods.fidelity import Fidelity
from scope.methods.options import option

_BETA = 20


@dataclass(frozen=True)
class Pyramid(Capacity):
    """An arithmetic series around C: the last layer gets (C - w)/20 tokens besides its window.

    The budgets sum to layers × C for every prompt longer than C.
    """

    name: ClassVar[str] = "pyramid"
    about: ClassVar[str] = "more in lower layers, on average C"

    window_size: int = option(8, "w, last prompt tokens always kept")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_size >= self.max_capacity_prompt:
            raise ScopeError(
                f"window_size {self.window_size} leaves no room in max_capacity_prompt "
                f"{self.max_capacity_prompt}; it must be smaller"
            )

    @classmethod
    def under(cls, fidelity: Fidelity) -> type[Budget]:
        return cls if fidelity.pyramid_at_every_length else PublishedPyramid

    @property
    def own_share(self) -> Part:
        return "layer"

    def ceiling(self, length: int, num_layers: int) -> Sequence[int]:
        if length <= self.max_capacity_prompt:
            return [self.max_capacity_prompt] * num_layers
        average, most = self.max_capacity_prompt - self.window_size, length - self.window_size
        budgets = pyramid_budgets(average, num_layers, _BETA, most)
        return [budget + self.window_size for budget in budgets]


@dataclass(frozen=True)
class PublishedPyramid(Pyramid):
    """As the published SCOPE code has it: flat for prompts of less than 2(C - w) tokens."""

    def ceiling(self, length: int, num_layers: int) -> Sequence[int]:
        average, most = self.max_capacity_prompt - self.window_size, length - self.window_size
        if length <= self.max_capacity_prompt or length < 2 * average:
            return [self.flat] * num_layers
        budgets = published_pyramid(average, num_layers, _BETA, most)
        return [budget + self.window_size for budget in budgets]

    @property
    def flat(self) -> int:
        """What every layer keeps of a prompt that is too short for a pyramid."""
        return self.max_capacity_prompt


def pyramid_budgets(average: int, num_layers: int, beta: int, ceiling: int) -> list[int]:
    """An arithmetic series of layer budgets with an exact sum.

    The last layer gets ``average // beta`` tokens and the first one ``2 * average`` minus that; a
    first budget above the tokens there are is cut to them, and the last one raised by as much.

    Args:
        average: at most ``ceiling``.
        num_layers: number of layers.
        beta: what the average is divided by.
        ceiling: the tokens there are.

    Returns:
        ``num_layers`` non-increasing budgets in ``[0, ceiling]`` that sum to
        ``num_layers * average``.
    """
    if num_layers == 1:
        return [average]
    highest, lowest = _ends(average, beta, ceiling)
    # In units of 1/(num_layers - 1), so that nothing is rounded before the remainder is shared out.
    parts = num_layers - 1
    scaled = [highest * (parts - layer) + lowest * layer for layer in range(num_layers)]
    budgets = [value // parts for value in scaled]
    by_fraction = sorted(range(num_layers), key=lambda layer: -(scaled[layer] % parts))
    for layer in by_fraction[: num_layers * average - sum(budgets)]:
        budgets[layer] += 1
    return budgets


def published_pyramid(average: int, num_layers: int, beta: int, ceiling: int) -> list[int]:
    """The same as the published SCOPE code rounds it; the sum is not ``num_layers * average``."""
    highest, lowest = _ends(average, beta, ceiling)
    step = (highest - lowest) // num_layers
    return [highest - layer * step for layer in range(num_layers)]


def _ends(average: int, beta: int, ceiling: int) -> tuple[int, int]:
    highest = min(2 * average - average // beta, ceiling)
    return highest, 2 * average - highest
