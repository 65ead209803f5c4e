"""How overdue a token is, by its longest pause so far: LazyEviction's score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scope.kernels.tensors import Kernel
from scope.methods.score import Shape, Slots
from scope.scores.last_attended import LastAttended


@dataclass(frozen=True)
class Recurrence(LastAttended):
    """``2 s((TS - t) / M) + 2 s(-1 / M)`` with the logistic function s.

    LazyEviction, arXiv 2506.15969: TS is the last step at which the token was attended to (``p >
    attended_above``) and M the longest gap between two such steps, at least 1, so that a token that
    was never attended to again counts as one without pauses. When tokens leave is a strategy's.
    """

    name: ClassVar[str] = "recurrence"
    about: ClassVar[str] = "how long the token has not been attended to, against its longest pause"
    kernel: ClassVar[Kernel | None] = "recurrence"
    state: ClassVar[Mapping[str, Shape]] = {**LastAttended.state, "gap": ("H", "S")}

    def worth(self, slots: Slots) -> Tensor:
        now, gap = slots.position[:, None, None].float(), slots.state["gap"]
        before = slots.state["last"].clone()
        last = super().worth(slots)
        renewed = (last > before) & ~slots.is_new
        torch.maximum(gap, (last - before) * renewed, out=gap)
        pause = gap.clamp(min=1.0)
        return 2 * torch.sigmoid((last - now) / pause) + 2 * torch.sigmoid(-1 / pause)
