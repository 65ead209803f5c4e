"""PyramidInfer as SCOPE's authors rebuilt it: H2O's scores in PyramidKV's layer budgets.

The published PyramidInfer (arXiv 2405.12532) prunes tokens between layers during prefill; SCOPE's
baseline of that name does not, and this one follows SCOPE's.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from baselines.h2o import H2O
from scope.methods.decoding import Counts, DecodingStrategy, Occupancy
from scope.methods.pyramid import prompt_pyramid, published_pyramid, pyramid_budgets


@dataclass(frozen=True)
class PyramidInfer(H2O):
    """Column sums as the score, layer budgets in an arithmetic series around C.

    Attributes:
        pyramid_at_every_length: if false, prompts shorter than 2(C - w) are not spread.
        pyramidinfer_extra_window: where it does not spread, it keeps C + w tokens instead of C.
    """

    name: ClassVar[str] = "PyramidInfer"

    pyramid_at_every_length: bool
    pyramidinfer_extra_window: bool

    def capacities(self, prompt_length: int, num_layers: int) -> list[int]:
        pyramid = prompt_pyramid(
            self.max_capacity_prompt,
            self.window_size,
            prompt_length,
            num_layers,
            every_length=self.pyramid_at_every_length,
        )
        if pyramid is None and self.pyramidinfer_extra_window:
            return [self.max_capacity_prompt + self.window_size] * num_layers
        return pyramid or super().capacities(prompt_length, num_layers)


@dataclass(frozen=True)
class PyramidInferDecoding(DecodingStrategy):
    """One budget over prompt and generation, larger in the lower layers.

    The budgets fall from about 1.5 to 0.5 times C + W - R, plus R, and sum to layers × (C + W).
    Tokens compete by the current query's attention, the nearest to the original's few recent ones.

    Attributes:
        decoding_window_size: W.
        decoding_recent_size: R.
        pyramidinfer_decoding: ``pyramid`` is the above. ``threshold`` is the published code's:
            C + W in every layer, and only a layer that holds 2(C - R) + W tokens or more gets a
            pyramid, whose average is above C + W.
    """

    name: ClassVar[str] = "pyramidinfer"
    unified: ClassVar[bool] = True
    beta: ClassVar[int] = 2

    decoding_window_size: int
    decoding_recent_size: int
    pyramidinfer_decoding: Literal["pyramid", "threshold"]

    def unified_budgets(self, capacities: list[int]) -> list[int]:
        if self.pyramidinfer_decoding == "threshold":
            return capacities
        num_layers = len(capacities)
        added = self.decoding_window_size - self.decoding_recent_size
        average = sum(capacities) // num_layers + added
        budgets = pyramid_budgets(average, num_layers, self.beta, ceiling=2 * average)
        return [budget - added for budget in budgets]

    def pool(self, step: Counts) -> Counts:
        return np.full_like(step, self.decoding_window_size)

    def targets(self, now: Occupancy) -> Counts:
        targets = super().targets(now)
        if self.pyramidinfer_decoding == "pyramid":
            return targets
        recent, window = self.decoding_recent_size, self.decoding_window_size
        spread = now.lengths >= np.maximum(targets, 2 * (now.base - recent) + window)
        for layer, row in np.argwhere(spread):
            average = int(now.base[layer, row]) + window - recent
            budgets = published_pyramid(average, len(targets), self.beta, ceiling=2 * average)
            targets[layer, row] = min(budgets[layer] + window + recent, now.lengths[layer, row])
        return targets
