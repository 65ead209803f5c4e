"""PyramidInfer as SCOPE's authors rebuilt it: H2O's scores in PyramidKV's layer budgets.

The published PyramidInfer (arXiv 2405.12532) prunes tokens between layers during prefill; SCOPE's
baseline of that name does not, and this one follows SCOPE's.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from baselines.h2o import H2O
from scope.budgets.pyramid import PublishedPyramid, Pyramid, published_pyramid, pyramid_budgets
from scope.methods.budget import Budget
from scope.methods.compressor import Compressor
from scope.methods.fidelity import Fidelity
from scope.methods.score import Score
from scope.methods.strategy import Counts, Occupancy, RecentWindow, Strategy
from scope.scores.current import Current

_BETA = 2


@dataclass(frozen=True)
class PyramidInferBudget(Pyramid):
    """PyramidKV's; only the published code's differs."""

    @classmethod
    def under(cls, fidelity: Fidelity) -> type[Budget]:
        published = super().under(fidelity)
        extra = published is not cls and fidelity.pyramidinfer_extra_window
        return PublishedPyramidInferBudget if extra else published


@dataclass(frozen=True)
class PublishedPyramidInferBudget(PublishedPyramid):
    """Where it is flat, it keeps the window's tokens beside C others."""

    @property
    def flat(self) -> int:
        return self.max_capacity_prompt + self.window_size


@dataclass(frozen=True)
class PyramidInfer(H2O):
    """Column sums as the score, layer budgets in an arithmetic series around C."""

    name: ClassVar[str] = "PyramidInfer"
    about: ClassVar[str] = "H2O's scores in PyramidKV's budgets, as SCOPE's authors rebuilt it"
    budget: ClassVar[type[Budget]] = PyramidInferBudget

    @classmethod
    def under(cls, fidelity: Fidelity) -> type[Compressor]:
        return cls if fidelity.causal_prefill_scores else PublishedPyramidInfer


@dataclass(frozen=True)
class PublishedPyramidInfer(PyramidInfer):
    """As the published SCOPE code has it: queries before the window also look at later tokens."""

    causal: ClassVar[bool] = False


@dataclass(frozen=True)
class PyramidInferDecoding(RecentWindow):
    """One budget over prompt and generation, larger in the lower layers.

    The budgets fall from about 1.5 to 0.5 times C + W - R, plus R, and sum to layers × (C + W).
    Tokens compete by the current query's attention, the nearest to the original's few recent ones.
    """

    name: ClassVar[str] = "pyramidinfer"
    about: ClassVar[str] = "baseline: the same with more in lower layers, by this step's attention"
    unified: ClassVar[bool] = True
    score: ClassVar[type[Score] | None] = Current

    @classmethod
    def under(cls, fidelity: Fidelity) -> type[Strategy]:
        published = fidelity.pyramidinfer_decoding == "threshold"
        return PublishedPyramidInferDecoding if published else cls

    def unified_budgets(self, capacities: list[int]) -> list[int]:
        num_layers = len(capacities)
        added = self.decoding_window_size - self.recent
        average = sum(capacities) // num_layers + added
        budgets = pyramid_budgets(average, num_layers, _BETA, ceiling=2 * average)
        return [budget - added for budget in budgets]


@dataclass(frozen=True)
class PublishedPyramidInferDecoding(PyramidInferDecoding):
    """As the published SCOPE code has it.

    C + W in every layer, and only a layer that holds 2(C - R) + W tokens or more gets a pyramid,
    whose average is above C + W.
    """

    def unified_budgets(self, capacities: list[int]) -> list[int]:
        return capacities

    def targets(self, now: Occupancy) -> Counts:
        targets = super().targets(now)
        recent, window = self.recent, self.decoding_window_size
        spread = now.lengths >= np.maximum(targets, 2 * (now.base - recent) + window)
        for layer, row in np.argwhere(spread):
            average = int(now.base[layer, row]) + window - recent
            budgets = published_pyramid(average, len(targets), _BETA, ceiling=2 * average)
            targets[layer, row] = min(budgets[layer] + window + recent, now.lengths[layer, row])
        return targets
