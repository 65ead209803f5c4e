"""SCOPE (Discontinuous): the adaptive pool, selected from only now and then."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from scope.decoding.adaptive import Adaptive
from scope.methods.decoding import NEVER, Counts, Occupancy


@dataclass(frozen=True)
class Discontinuous(Adaptive):
    """Cuts to Adaptive's size once every zeta = (T - R)/(W - R) steps: W - R selections in all.

    In between the pool grows by up to zeta tokens (arXiv 2412.13649, section 3.2 and appendix).
    zeta is the number of steps in which the adaptive window grows by one token, so a selection is
    due exactly when it has grown, also where zeta is no whole number.

    Attributes:
        discontinuous_clock: ``growth`` is the above; ``counters`` the published code's: once a
            layer is over the window, ``delta`` steps' worth of layer calls pass, and then every
            layer in turn selects once.
    """

    name: ClassVar[str] = "discontinuous"

    discontinuous_clock: Literal["growth", "counters"]

    def targets(self, now: Occupancy) -> Counts:
        window = self.pool(now.step)
        if self.discontinuous_clock == "growth":
            due = window > self.pool(now.step - 1)
            return np.where(due, now.base + window, NEVER)
        return self._by_counters(now, now.base + window)

    def _by_counters(self, now: Occupancy, window: Counts) -> Counts:
        targets = np.full_like(window, NEVER)
        num_layers = len(window)
        for layer in range(num_layers):
            over = now.lengths[layer] >= window[layer]
            selects = over & (now.skipped >= self.delta * num_layers)
            now.skipped += over & ~selects
            now.selecting += selects
            targets[layer, selects] = window[layer, selects]
            round_over = now.selecting == num_layers
            now.skipped[round_over] = 0
            now.selecting[round_over] = 0
        return targets
