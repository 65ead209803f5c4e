"""Host-side bookkeeping of a cache: who holds how many tokens, and how many must go."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from scope.errors import ScopeError
from scope.methods.recipe import Recipe
from scope.methods.strategy import Counts, Occupancy


@dataclass(frozen=True)
class RowReport:
    """What one row's cache did: counts per layer.

    Attributes:
        prompt_tokens: tokens of the prompt.
        prompt_kept: of those, tokens kept after prefill.
        decode_evicted: tokens that left after prefill.
        selections: steps at which the strategy chose what stays.
        peak: largest physical length, the token being attended included.
    """

    prompt_tokens: int
    prompt_kept: list[int]
    decode_evicted: list[int]
    selections: list[int]
    peak: list[int]


class Schedule:
    """Counts for N layers and B rows. All arrays are ``[N, B]`` unless said otherwise.

    Attributes:
        prompt_lengths: ``[B]`` tokens of each row's prompt; 0 for a row without one.
        kept: entries kept of the prompt.
        now: steps, lengths and clocks, as the strategy sees them.
        peak: largest length so far, the token being attended included.
        evicted: tokens that left after prefill.
        losses: tokens that leave after this step's attention.
        full: ``[B]`` whether this step may attend to all that is held.
        row_steps: steps so far, summed over the rows that had a prompt.
        selections: steps at which the strategy chose what stays.
    """

    def __init__(self, recipe: Recipe, num_layers: int, batch_size: int) -> None:
        self.recipe = recipe
        self.num_layers = num_layers
        rows, layers_and_rows = (batch_size,), (num_layers, batch_size)
        self.prompt_lengths = np.zeros(rows, np.int64)
        self.kept = np.zeros(layers_and_rows, np.int64)
        self.peak = np.zeros(layers_and_rows, np.int64)
        self.losses = np.zeros(layers_and_rows, np.int64)
        self.full = np.zeros(rows, bool)
        self.row_steps = 0
        self.evicted = np.zeros(layers_and_rows, np.int64)
        self.selections = np.zeros(layers_and_rows, np.int64)
        self.now = Occupancy(
            step=np.zeros(rows, np.int64),
            lengths=np.zeros(layers_and_rows, np.int64),
            base=np.zeros(layers_and_rows, np.int64),
            skipped=np.zeros(rows, np.int64),
            selecting=np.zeros(rows, np.int64),
        )

    def admit(self, row: int, prompt_length: int) -> None:
        """Start a row over with a prompt of this many tokens."""
        self.release(row)
        self.prompt_lengths[row] = prompt_length
        self.hold(row, self.recipe.budget.ceiling(prompt_length, self.num_layers))

    def hold(self, row: int, capacities: Sequence[int]) -> None:
        """Say how many tokens each layer may keep of a row's prompt."""
        kept = np.minimum(capacities, self.prompt_lengths[row])
        self.kept[:, row] = self.peak[:, row] = self.now.lengths[:, row] = kept
        self.now.base[:, row] = base_of(self.recipe, capacities, int(self.prompt_lengths[row]))

    def release(self, row: int) -> None:
        """Leave a row without a prompt: it holds nothing, and steps pass it by."""
        own = (self.kept, self.peak, self.losses, self.evicted, self.selections)
        for counts in (self.prompt_lengths, *own, *vars(self.now).values()):
            counts[..., row] = 0

    @property
    def protected(self) -> Counts:
        """First entries of each layer and row, in cache order, that never leave."""
        frozen = self.now.base if self.recipe.frozen_prefix == "capacity" else self.kept
        return self.recipe.strategy.protected(frozen, self.now.base)

    @property
    def may_be_full(self) -> bool:
        """Whether some row may attend to all that it holds at this step."""
        return bool(self.full.any())

    def snapshot(self) -> "Schedule":
        """These counts, for `report`, standing still while rows go on, end and start over."""
        still = copy(self)
        still.prompt_lengths, still.kept = self.prompt_lengths.copy(), self.kept.copy()
        still.peak, still.evicted = self.peak.copy(), self.evicted.copy()
        still.selections = self.selections.copy()
        return still

    def report(self, row: int) -> RowReport:
        """What one row has held and lost so far."""
        return RowReport(
            prompt_tokens=int(self.prompt_lengths[row]),
            prompt_kept=self.kept[:, row].tolist(),
            decode_evicted=self.evicted[:, row].tolist(),
            selections=self.selections[:, row].tolist(),
            peak=self.peak[:, row].tolist(),
        )

    def advance(self) -> None:
        """Count one more decode step in every row that has a prompt."""
        now, running = self.now, self.prompt_lengths > 0
        now.step += running
        self.row_steps += int(np.count_nonzero(running))
        now.lengths += running
        np.maximum(self.peak, now.lengths, out=self.peak)
        targets = self.recipe.strategy.targets(now)
        # A strategy's clock may tick where nothing is held.
        now.skipped *= running
        now.selecting *= running
        selects = running & (now.lengths >= targets)
        self.losses = np.where(selects, now.lengths - targets, 0)
        may_go = now.lengths - np.minimum(self.protected, now.lengths) - self.recipe.strategy.recent
        if (self.losses > np.maximum(may_go, 0)).any():
            raise ScopeError(
                f"the strategy {self.recipe.strategy.name} wants more tokens gone than may go: its "
                "pool is smaller than the recent tokens that it keeps"
            )
        now.lengths -= self.losses
        self.evicted += self.losses
        self.full = running & self.recipe.strategy.full(now.step)
        self.selections += selects


def base_of(recipe: Recipe, capacities: Sequence[int], prompt_length: int) -> Counts:
    """``[N]`` entries that the strategy's own budget comes on top of, layer by layer."""
    if recipe.frozen_prefix == "capacity":
        return np.full(len(capacities), recipe.budget.nominal(prompt_length))
    if recipe.strategy.unified:
        return np.asarray(recipe.strategy.unified_budgets(list(capacities)))
    return np.minimum(capacities, prompt_length)
