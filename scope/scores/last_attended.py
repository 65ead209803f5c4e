"""The step at which a token was last attended to: RaaS' score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scope.errors import ScopeError
from scope.kernels.tensors import Kernel
from scope.methods.options import option
from scope.methods.prompt import Prompt
from scope.methods.score import AttentionScore, Shape, Slots


@dataclass(frozen=True)
class LastAttended(AttentionScore):
    """The token that has not been attended to for longest leaves: ``p > attended_above`` renews it.

    RaaS, arXiv 2502.11147, per token instead of by pages of 16, and with a threshold where the
    paper renews the better half of all. A new token counts as attended to, and so do those of a
    prompt at its end.
    """

    name: ClassVar[str] = "last_attended"
    about: ClassVar[str] = "the step at which the token was last attended to"
    kernel: ClassVar[Kernel | None] = "recurrence"
    # Steps are whole numbers, which a float holds exactly up to 2 ** 24.
    state: ClassVar[Mapping[str, Shape]] = {"last": ("H", "S")}

    attended_above: float = option(1e-4, "attention above which a token counts as attended to")

    def __post_init__(self) -> None:
        if not 0 <= self.attended_above < 1:
            raise ScopeError(
                f"attended_above is {self.attended_above}; it is a share, from 0 to below 1"
            )

    def worth(self, slots: Slots) -> Tensor:
        now, last = slots.position[:, None, None].float(), slots.state["last"]
        return last.copy_(now.where(slots.is_new | (slots.current > self.attended_above), last))

    def remember(self, prompt: Prompt) -> Mapping[str, Tensor]:
        shape = prompt.keys.shape[:2]
        return {"last": torch.full(shape, prompt.length - 1.0, device=prompt.keys.device)}
