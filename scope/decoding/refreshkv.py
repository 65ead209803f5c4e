"""RefreshKV: everything stays, most steps read a little of it, and now and then one reads all."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from scope.methods.api import (
    NEVER,
    Counts,
    GroupReduction,
    Prompt,
    ScopeError,
    Slots,
    Strategy,
    option,
)

_POOLING = 7


@dataclass(frozen=True)
class RefreshKV(Strategy):
    """Attends to K slots a head, and every ``stride`` steps to all, to choose them anew.

    RefreshKV, arXiv 2411.05787, section 3. A token's score is the largest attention that a query
    head of its group gives it at the full step, max-pooled over 7 neighbours, ``[H, S]``; the K
    best are the working set. The last prompt token chooses the first one. A new token takes the
    place of the lowest scored, and once K tokens have come, of the oldest of them.

    With a threshold s a layer refreshes a row only where the query, mean over heads, has turned
    away from that of its last full step: at steps stride, 2 stride ... where cos(q, q_last) <= s.
    The paper leaves open whether before or after RoPE; here after. Of a compressed prompt the set
    is chosen among what is held, by its attention and neighbours in the whole prompt; at later
    steps neighbours are those held.

    This saves reading, not memory; with ``offload`` memory of the GPU too. All keys and values then
    lie in pinned host memory, which kernels address: every step writes its token there, and full
    steps read what is held, and once more what they choose, over the bus.
    """

    name: ClassVar[str] = "refreshkv"
    about: ClassVar[str] = "everything, but most steps read only the K tokens last chosen"
    takes_score: ClassVar[bool] = False
    group_reduction: ClassVar[GroupReduction] = "max"

    working_set: int = option(512, "K, tokens per head that refreshkv reads between full steps")
    stride: int = option(10, "steps from one full step of refreshkv to the next")
    threshold: float | None = option(
        None, "s, the cosine of queries above which refreshkv puts a full step off (default never)"
    )
    offload: bool = option(
        False, "keep keys and values in host memory, and copies of working sets alone on the GPU"
    )

    def __post_init__(self) -> None:
        for name in ("working_set", "stride"):
            if getattr(self, name) < 1:
                raise ScopeError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise ScopeError(f"threshold is {self.threshold}; a cosine is from -1 to 1")

    def pool(self, step: Counts) -> Counts:
        return np.full_like(step, NEVER)

    def full(self, step: Counts) -> NDArray[np.bool_]:
        return step % self.stride == 0

    @property
    def full_share(self) -> float:
        return 1 / self.stride

    def rank_prompt(self, prompt: Prompt) -> Tensor:
        return _pooled(prompt.received(last=1, reduction=self.group_reduction))

    def rank(self, slots: Slots) -> Tensor:
        return _pooled(slots.current)

    @property
    def drifts(self) -> bool:
        return self.threshold is not None

    def drifted(self, query: Tensor, last: Tensor) -> Tensor:
        most = 1.0 if self.threshold is None else self.threshold
        return functional.cosine_similarity(query, last, dim=-1).clamp(max=1) <= most


def _pooled(attention: Tensor) -> Tensor:
    """The largest of 7 neighbours, in the order of the tokens: slots of those that stay are."""
    flat = attention.flatten(0, -2)
    return functional.max_pool1d(flat, _POOLING, stride=1, padding=_POOLING // 2).view_as(attention)
