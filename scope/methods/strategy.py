"""The interface of decoding strategies: how much may stay after step t?

Counts are made on the host, with numpy integers, and depend on lengths and steps alone: whether a
selection is due is known without waiting for the device. What is done to the slots themselves
(`select`, `rewrite`) is torch on fixed shapes, recorded with the step.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from scope.errors import ScopeError
from scope.kernels.tensors import GroupReduction
from scope.methods.fidelity import Fidelity
from scope.methods.options import option
from scope.methods.prompt import Prompt
from scope.methods.score import Score, Shape, Slots

Counts = NDArray[np.int64]

# A target no length reaches: nothing is evicted.
NEVER = np.iinfo(np.int64).max // 2


@dataclass
class Occupancy:
    """How many tokens a cache of N layers and B rows holds, after the new token was appended.

    Attributes:
        step: ``[B]`` decode step t of each row, 1-based; 0 while its prompt is being read.
        lengths: ``[N, B]`` tokens held.
        base: ``[N, B]`` tokens that a strategy's own budget comes on top of: those kept of the
            prompt, or for unified strategies the capacity of the layer.
        skipped: ``[B]`` layer calls that a shared clock has let pass since the last selection.
        selecting: ``[B]`` layers that have selected since the shared clock ran out.
    """

    step: Counts
    lengths: Counts
    base: Counts
    skipped: Counts
    selecting: Counts


@dataclass(frozen=True)
class Strategy(ABC):
    """Base of all decoding strategies: a frozen dataclass whose `option` fields are its options.

    A field ``max_new_tokens`` without a default is given T.

    Attributes:
        name: what users call it.
        about: what it keeps of a generation, for a table.
        unified: whether prompt and decode tokens share one budget.
        score: what tokens compete by, where the user leaves it open; None if none ever leaves.
        takes_score: whether a user may choose another.
        state: what `rank` and `rewrite` remember, as in `Score`.
        group_reduction: how the attention of the query heads of a group becomes one number, where
            there is no score to say so.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    unified: ClassVar[bool] = False
    score: ClassVar[type[Score] | None] = None
    takes_score: ClassVar[bool] = True
    state: ClassVar[Mapping[str, Shape]] = {}
    group_reduction: ClassVar[GroupReduction] = "mean"

    @classmethod
    def under(cls, fidelity: Fidelity) -> type["Strategy"]:
        """The class that stands for this one where the published code is followed."""
        return cls

    def check_model(self, config: PreTrainedConfig) -> None:  # noqa: B027  # most take any
        """Refuse a model that this strategy was not made for.

        Raises:
            ScopeError: with what would do.
        """

    # --- counts, on the host ----------------------------------------------------------------------

    @property
    def recent(self) -> int:
        """R, newest tokens that never leave; 1 at least."""
        return 1

    def unified_budgets(self, capacities: list[int]) -> list[int]:
        """What a unified strategy adds its window to, layer by layer."""
        return capacities

    def protected(self, frozen: Counts, base: Counts) -> Counts:
        """How many of the first entries of each layer and row never leave.

        Args:
            frozen: ``[N, B]`` entries of the prompt pool.
            base: as in `Occupancy`.
        """
        return np.zeros_like(base) if self.unified else frozen

    @abstractmethod
    def pool(self, step: Counts) -> Counts:
        """Tokens beyond the base that may stay after step t, elementwise; R at least.

        Steps are 1, 2, ...; a row that idles asks for step 0, and nothing comes of it.
        """

    def due(self, step: Counts) -> NDArray[np.bool_]:
        """Whether a selection may be due after step t, elementwise."""
        return np.ones(step.shape, bool)

    def targets(self, now: Occupancy) -> Counts:
        """``[N, B]`` length that each layer is cut to where it is longer; NEVER if none is due."""
        return np.where(self.due(now.step), now.base + self.pool(now.step), NEVER)

    @property
    def working_set(self) -> int | None:
        """K, slots of each head that a step reads, the new token's among them, unless it is full.

        None where all steps are full. From a cache that is read in part nothing may leave.
        """
        return None

    @property
    def offload(self) -> bool:
        """Whether all that is held lies in host memory, and working sets alone on the device."""
        return False

    def full(self, step: Counts) -> NDArray[np.bool_]:
        """Whether step t may attend to all that is held, elementwise; else to the working set."""
        return np.ones(step.shape, bool)

    @property
    def full_share(self) -> float:
        """Most steps of a long generation that are full, as a share."""
        return 1.0

    def read(self, held: Counts, full_share: float | None = None) -> NDArray[np.float64]:
        """Slots that a step reads of so many that are held, on average, elementwise.

        Args:
            held: slots.
            full_share: share of steps that are full, if known better than `full_share`.
        """
        share = self.full_share if full_share is None else full_share
        part = held if self.working_set is None else np.minimum(held, self.working_set)
        return part + share * (held - part)

    # --- values, on the device --------------------------------------------------------------------

    def rank_prompt(self, prompt: Prompt) -> Tensor:
        """What the tokens of a prompt compete for the first working set by: ``[H, L]`` float32."""
        raise NotImplementedError

    def rank(self, slots: Slots) -> Tensor:
        """After a full step: what tokens compete for the next working set by, ``[B, H, S]``.

        The K largest win, and of equals the earliest. Each token that comes until the next full
        step takes the place of the least one. What is ranked of a row whose step was not full is
        dropped; its attention means nothing.
        """
        raise NotImplementedError

    @property
    def drifts(self) -> bool:
        """Whether `drifted` is asked; otherwise every full step is taken that may be."""
        return False

    def drifted(self, query: Tensor, last: Tensor) -> Tensor:
        """Which rows of one layer do take a full step that they may take: ``[B]`` bool.

        Args:
            query: ``[B, D]`` float32, the new token's, mean over the heads.
            last: the same of the row's last full step in this layer.
        """
        raise NotImplementedError

    def rewrite(self, slots: Slots, leaving: Tensor) -> None:
        """Change what stays, in place, by what leaves after this step.

        Called after steps at which something leaves in some row.

        Args:
            slots: as they were before anything left.
            leaving: ``[B, H, S]`` bool.
        """
        raise NotImplementedError

    @property
    def counts_on(self) -> bool:
        """Whether targets may depend on lengths and clocks; otherwise on steps alone."""
        return type(self).targets is not Strategy.targets

    @property
    def rewrites(self) -> bool:
        """Whether `rewrite` is there to be asked."""
        return type(self).rewrite is not Strategy.rewrite


@dataclass(frozen=True)
class Window(Strategy):
    """Base of strategies that keep up to W tokens."""

    decoding_window_size: int = option(512, "W, generated tokens kept")

    def __post_init__(self) -> None:
        if self.decoding_window_size < 2:
            raise ScopeError(
                f"decoding_window_size is {self.decoding_window_size}; it must be at least 2"
            )

    def pool(self, step: Counts) -> Counts:
        return np.full_like(step, self.decoding_window_size)


@dataclass(frozen=True)
class RecentWindow(Window):
    """Base of strategies that keep up to W tokens, the last R of them always."""

    decoding_recent_size: int | None = option(
        None, "R, most recent of those W, never evicted (default W // 2)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        window = self.decoding_window_size
        if self.decoding_recent_size is None:
            object.__setattr__(self, "decoding_recent_size", window // 2)
        if not 1 <= self.recent < window:
            raise ScopeError(
                f"decoding_recent_size {self.recent} leaves no room in decoding_window_size "
                f"{window}; it must be at least 1 and smaller"
            )

    @property
    def recent(self) -> int:
        return self.decoding_recent_size or 0
