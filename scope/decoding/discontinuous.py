"""SCOPE (Discontinuous): the adaptive pool, selected from only now and then."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scope.decoding.adaptive import Adaptive, Paced, UncappedAdaptive
from scope.methods.fidelity import Fidelity
from scope.methods.strategy import NEVER, Counts, Occupancy, Strategy


@dataclass(frozen=True, kw_only=True)
class Discontinuous(Adaptive):
    """Cuts to Adaptive's size once every zeta = (T - R)/(W - R) steps: W - R selections in all.

    In between the pool grows by up to zeta tokens (arXiv 2412.13649, section 3.2 and appendix).
    zeta is the number of steps in which the adaptive window grows by one token, so a selection is
    due exactly when it has grown, also where zeta is no whole number.
    """

    name: ClassVar[str] = "discontinuous"
    about: ClassVar[str] = "the same, selected W − R times instead of at every step"

    @classmethod
    def under(cls, fidelity: Fidelity) -> type[Strategy]:
        uncapped = fidelity.adaptive_window == "uncapped"
        if fidelity.discontinuous_clock == "counters":
            return CountingUncappedDiscontinuous if uncapped else CountingDiscontinuous
        return UncappedDiscontinuous if uncapped else cls

    def due(self, step: Counts) -> NDArray[np.bool_]:
        return self.pool(step) > self.pool(step - 1)


@dataclass(frozen=True, kw_only=True)
class UncappedDiscontinuous(UncappedAdaptive, Discontinuous):
    """Cuts to the published code's size."""


@dataclass(frozen=True, kw_only=True)
class CountingDiscontinuous(Paced, Discontinuous):
    """Cuts when the published code's clock says so.

    Once a layer is over the window, ``pace`` steps' worth of layer calls pass, and then every layer
    in turn selects once.
    """

    def targets(self, now: Occupancy) -> Counts:
        window = now.base + self.pool(now.step)
        targets = np.full_like(window, NEVER)
        num_layers = len(window)
        for layer in range(num_layers):
            over = now.lengths[layer] >= window[layer]
            selects = over & (now.skipped >= self.pace * num_layers)
            now.skipped += over & ~selects
            now.selecting += selects
            targets[layer, selects] = window[layer, selects]
            round_over = now.selecting == num_layers
            now.skipped[round_over] = 0
            now.selecting[round_over] = 0
        return targets


@dataclass(frozen=True, kw_only=True)
class CountingUncappedDiscontinuous(CountingDiscontinuous, UncappedAdaptive):
    """Both, as the published SCOPE code has it."""
