"""The interface of decoding scores: what do tokens compete by, where some must leave?"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from scope.kernels import Backend
from scope.kernels.tensors import FREE, GroupReduction, Kernel, NewTokens, mixed
from scope.methods.options import option
from scope.methods.prompt import Prompt

# A tensor's sizes after the batch's: numbers, or "H" KV heads, "H_q" query heads, "S" slots, "D"
# head size, "D/2" pairs that RoPE turns, or the name of one of the method's options. What has slots
# begins with ("H", "S"), and starts at 0 with every token.
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Slots:
    """One layer at one step, after its attention: the new token is in its slot.

    On a GPU all this is recorded once and replayed at every step: work on these tensors with torch,
    in shapes that depend on no value, and never wait for one.

    Attributes:
        keys, values: ``[B, H, S, D]``; what is held in less room is not among them.
        positions: ``[B, H, S]`` int32 position of each token in its sequence, -1 in a free slot.
        ranks: ``[B, H, S]`` int32 order in which a head's tokens came, -1 in a free slot.
        newest: ``[B]`` int32 rank of the new token: a row's clock.
        position: ``[B]`` int32, its position.
        protected: ``[B]`` int32; ranks below it never leave.
        recent: R, newest tokens that do not leave.
        new: the new token's states.
        current: ``[B, H, S]`` float32 attention of this step to each slot.
        draw: ``[B]`` int64, a 32-bit number that chance makes of each row's prompt.
        layer: number of the layer, from 0.
        backend: what computes.
        state: what the score and the strategy have declared, ``[B, ...]`` float32 each, but for a
            ring of queries, which are as they come; change it in place.
        scaling: factor on the query-key products.
        sliding_window: how many tokens back a query may look, itself included; None for all.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    ranks: Tensor
    newest: Tensor
    position: Tensor
    protected: Tensor
    recent: int
    new: NewTokens
    current: Tensor
    draw: Tensor
    layer: int
    backend: Backend
    state: Mapping[str, Tensor]
    scaling: float
    sliding_window: int | None

    def seen(self, age: Tensor | int = 0) -> Tensor:
        """``[B, H, S]`` bool, what a query sees: the newest one, or ``[B]`` steps before."""
        last = self.newest - age
        seen = (self.ranks != FREE) & (self.ranks <= last[:, None, None])
        if self.sliding_window is None:
            return seen
        return seen & (self.positions > (self.position - age - self.sliding_window)[:, None, None])

    def drawn(self) -> Tensor:
        """``[B, H, S]`` float32, 24 bits that chance makes of each token, head, layer and row."""
        heads = torch.arange(self.ranks.shape[1], device=self.ranks.device)[:, None]
        chance = self.draw[:, None, None] + 1_000_003 * heads + 1_000_000_007 * self.layer
        # A float holds so many bits exactly.
        return (mixed(mixed(self.ranks.long()) + chance) >> 8).float()

    @property
    def queries(self) -> Tensor:
        """``[B, H_q, D]`` of the new token, after RoPE."""
        return self.new.turned.queries

    @property
    def new_values(self) -> Tensor:
        """``[B, H, D]`` of the new token."""
        return self.new.values

    @property
    def is_new(self) -> Tensor:
        """``[B, H, S]`` bool, the slots of the new token."""
        return self.ranks == self.newest[:, None, None]

    @property
    def may_go(self) -> Tensor:
        """``[B, H, S]`` bool, the slots of tokens that are neither protected nor recent."""
        last = self.newest[:, None, None] - self.recent
        return (self.ranks >= self.protected[:, None, None]) & (self.ranks <= last)


@dataclass(frozen=True)
class Score(ABC):
    """Base of all decoding scores: a frozen dataclass whose `option` fields are its options.

    Attributes:
        name: what users call it.
        about: what the tokens compete by, for a table.
        kernel: a kernel that attends, ranks as `worth` does and evicts at once; without one `worth`
            runs between two kernels.
        state: what it remembers, by name: per slot if the shape holds "S", otherwise per layer or
            head. One named ``queries``, of ``("H_q", w, "D")``, is a ring of the last w queries
            that each step adds its own to, that of rank r in place r % w; 0 where none has come.
        seldom: whether `worth` is asked only after steps at which some token leaves, which then are
            a record of their own: for what would cost too much at every step.
        of_all_heads: whether it ranks the tokens of all heads at once, which so must be the same.
        group_reduction: how the attention of the query heads of a group becomes one number.
        seed: what a row's `Slots.draw` depends on, besides its prompt.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    kernel: ClassVar[Kernel | None] = None
    state: ClassVar[Mapping[str, Shape]] = {}
    seldom: ClassVar[bool] = False
    of_all_heads: ClassVar[bool] = False

    # Options of those that declare them so.
    group_reduction: GroupReduction = "mean"
    seed: int = 0

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "worth" in vars(cls) and "kernel" not in vars(cls):
            cls.kernel = None  # one that it may have inherited ranks by something else

    @abstractmethod
    def worth(self, slots: Slots) -> Tensor:
        """``[B, H, S]`` float32: the lowest leave first, and of equals the newest.

        Called at every step, also where none leaves, so that a state may be brought up to date;
        unless `seldom`.
        """

    def initial(self, config: PreTrainedConfig, layer: int) -> Mapping[str, Tensor]:
        """What states that are not per slot start with, for a layer of this model; 0 if not said.

        Raises:
            ScopeError: where the model cannot be scored.
        """
        return {}

    def remember(self, prompt: Prompt) -> Mapping[str, Tensor]:
        """What the tokens of a prompt start with, ``[H, L]`` for a state per slot; 0 if not said.

        Asked where prompt and generation share one budget; elsewhere every token starts at 0.
        """
        return {}


@dataclass(frozen=True)
class AttentionScore(Score):
    """Base of scores that look at attention."""

    group_reduction: GroupReduction = option(
        "mean", "how the attention of the query heads of a KV head becomes one number"
    )
