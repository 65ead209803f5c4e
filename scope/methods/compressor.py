"""The interface of prefill compressors: which tokens of a prompt does each head of a layer hold?"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from scope.errors import ScopeError
from scope.methods.budget import Budget, Part, Share, least, most, on_device
from scope.methods.fidelity import Fidelity
from scope.methods.options import option
from scope.methods.prompt import FREE, Entries, Prompt


@dataclass(frozen=True)
class Compressor:
    """Base of all prefill compressors: a frozen dataclass whose `option` fields are its options.

    A subclass overrides one of `keep` (which positions) and `compress` (what is held, where that is
    not simply some of the tokens). A prompt no longer than its share is held whole, and no
    compressor is asked.

    Attributes:
        name: what users call it.
        about: what it keeps of a prompt, for a table.
        budget: how much each layer keeps, where the user leaves it open.
        takes_budget: whether a user may choose another.
        published_delta: the delta that the published runner gives a strategy beside it, whatever T
            and W are; None for what they say.
        headwise: whether every head chooses by its own states alone, so that the layers of a prompt
            may be compressed at once, as if they were heads of one. A subclass says so anew.
        own_choice: what surely chooses its own tokens of a prompt that is cut: every head in any
            case, or every layer, in which heads agree with ``share_heads``. None if nothing does,
            or may: what needs equal choices is then refused by the first that differ.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    budget: ClassVar[type[Budget]]
    takes_budget: ClassVar[bool] = True
    published_delta: ClassVar[int | None] = None
    headwise: ClassVar[bool] = False
    own_choice: ClassVar[Part | None] = None

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.headwise = vars(cls).get("headwise", False)  # what it inherits may not be true of it

    @classmethod
    def under(cls, fidelity: Fidelity) -> type["Compressor"]:
        """The class that stands for this one where the published code is followed."""
        return cls

    def check(self, budget: Budget) -> None:
        """Refuse a budget that leaves this compressor no room.

        Raises:
            ScopeError: with what would do.
        """

    def check_model(self, config: PreTrainedConfig) -> None:
        """Refuse a model that this compressor was not made for.

        Raises:
            ScopeError: with what would do.
        """

    def keep(self, prompt: Prompt, share: Share) -> Tensor:
        """Choose tokens: ``[H, P]`` int64 positions, distinct within a head.

        Args:
            prompt: longer than the share of some head.
            share: how many tokens each head keeps: one number, or ``[H]`` of them. P is the
                largest; a head with less is filled up with FREE.
        """
        raise NotImplementedError

    def compress(self, prompt: Prompt, share: Share) -> Entries:
        """What is held of a prompt; the arguments are those of `keep`."""
        return prompt.take(self.keep(prompt, share))


@dataclass(frozen=True)
class ScoredCompressor(Compressor):
    """Keeps the last tokens, ``window_size`` of them, and the best scored of the others."""

    window_size: int = option(8, "w, last prompt tokens always kept")

    def __post_init__(self) -> None:
        if self.window_size < 1:
            raise ScopeError(f"window_size is {self.window_size}; it must be at least 1")

    @property
    def last_kept(self) -> int:
        """How many of the last tokens always stay."""
        return self.window_size

    def check(self, budget: Budget) -> None:
        capacity = budget.capacity
        if capacity is not None and self.window_size >= capacity:
            raise ScopeError(
                f"window_size {self.window_size} leaves no room in max_capacity_prompt {capacity}; "
                "it must be smaller"
            )

    def score(self, prompt: Prompt) -> Tensor:
        """Score the prompt's tokens: ``[H, L]``, larger is kept; the window's may be missing."""
        raise NotImplementedError

    def keep(self, prompt: Prompt, share: Share) -> Tensor:
        window_size = min(self.last_kept, prompt.length, least(share))
        scores = prompt.heads.joined(self.score(prompt), len(prompt.keys))
        return window_and_best(scores, prompt.length, share, window_size)


def window_and_best(scores: Tensor, length: int, share: Share, window_size: int) -> Tensor:
    """Positions of the last tokens and of the best scored others.

    Args:
        scores: ``[H, L]``, larger is kept; the window's may be missing.
        length: L.
        share: how many tokens each head keeps, as for `Compressor.keep`.
        window_size: how many of these are the last.

    Returns:
        ``[H, P]``, the best first and the window at the end; FREE where a head has less.
    """
    start = length - window_size
    # A stable sort breaks ties by the lower position on every device; topk does not.
    ranked = scores[:, :start].sort(dim=-1, descending=True, stable=True).indices
    chosen = ranked[:, : most(share) - window_size]
    if least(share) < most(share):
        own = on_device(share, ranked.device)[:, None] - window_size
        chosen = chosen.where(torch.arange(chosen.shape[1], device=ranked.device) < own, FREE)
    window = torch.arange(start, length, device=ranked.device)
    return torch.cat([chosen, window.expand(len(ranked), -1)], dim=1)
