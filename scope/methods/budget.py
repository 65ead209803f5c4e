"""The interface of prompt budgets: how many tokens does each layer, or head, keep of a prompt?"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scope.errors import ScopeError
from scope.methods.fidelity import Fidelity
from scope.methods.options import option
from scope.methods.prompt import Prompt

# What one layer keeps: of every head the same number, or ``[H]`` numbers.
Share = int | NDArray[np.int64]

# What decides for itself: every layer, or every head of every layer.
Part = Literal["layer", "head"]


def on_device(share: Share, device: torch.device) -> Tensor:
    """``[]`` or ``[H]`` int64; nobody waits for one number."""
    if isinstance(share, int):
        return torch.full((), share, device=device)
    return torch.as_tensor(share, device=device)


def least(share: Share) -> int:
    """What the head with the least keeps."""
    return share if isinstance(share, int) else int(share.min())


def most(share: Share) -> int:
    """What the head with the most keeps."""
    return share if isinstance(share, int) else int(share.max())


@dataclass(frozen=True)
class Budget(ABC):
    """Base of all budgets: a frozen dataclass whose `option` fields are its options.

    Counts come from lengths alone (`ceiling`), unless `observe` looks at every layer of the prompt
    first: then `share_out` divides what there is, with one wait for the device per prompt. Prompts
    are held whole until then, in all layers. Where `total` says how much there is, slots follow.

    Attributes:
        name: what users call it.
        about: what it gives to whom, for a table.
        observes: whether `observe` and `share_out` are asked.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    observes: ClassVar[bool] = False

    @classmethod
    def under(cls, fidelity: Fidelity) -> type["Budget"]:
        """The class that stands for this one where the published code is followed."""
        return cls

    @property
    def capacity(self) -> int | None:
        """C, if there is one: what a prompt longer than it is cut to on average."""
        return None

    @property
    def own_share(self) -> Part | None:
        """What surely has a share of its own of a prompt that is cut; None if nothing has, or may.

        What needs equal shares is refused by this before anything is loaded; where it is not said,
        by the first shares that differ.
        """
        return None

    @abstractmethod
    def ceiling(self, length: int, num_layers: int) -> Sequence[int]:
        """Most tokens that each layer may keep of a prompt, before any data are known."""

    def nominal(self, length: int) -> int:
        """The same for every layer: what the published decoding step takes for it."""
        return length if self.capacity is None else self.capacity

    def total(self, length: int, num_layers: int) -> int | None:
        """What the shares of all layers together never exceed, each counted as its heads' mean.

        Then the layers share one arena of slots, and free ones cost nothing. None where only the
        ceiling is known: then every layer has slots for it.
        """
        return None

    def observe(self, prompt: Prompt) -> Tensor:
        """What `share_out` must know of one layer: of one shape in all layers."""
        raise NotImplementedError

    def share_out(self, seen: Tensor, length: int) -> NDArray[np.int64]:
        """Tokens that each layer keeps, ``[N]``, or each of its heads, ``[N, H]``.

        Args:
            seen: ``[N, ...]`` what was observed, on the host.
            length: of the prompt.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Capacity(Budget):
    """Base of budgets around C tokens per layer and head."""

    max_capacity_prompt: int = option(2048, "C, prompt tokens kept per layer and head")

    def __post_init__(self) -> None:
        if self.max_capacity_prompt < 1:
            raise ScopeError(
                f"max_capacity_prompt is {self.max_capacity_prompt}; it must be at least 1"
            )

    @property
    def capacity(self) -> int:
        return self.max_capacity_prompt


@dataclass(frozen=True)
class Divided(Capacity):
    """Base of budgets that share N C tokens out to N layers, or heads, by what they observe."""

    observes: ClassVar[bool] = True

    def ceiling(self, length: int, num_layers: int) -> Sequence[int]:
        return [max(length, self.max_capacity_prompt)] * num_layers

    def total(self, length: int, num_layers: int) -> int:
        return num_layers * self.max_capacity_prompt
