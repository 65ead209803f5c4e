"""What a method sees of one prompt in one layer, and what it answers: the entries to hold."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scope.kernels import Backend, backend_for
from scope.kernels.tensors import FREE, GroupReduction, reduce_group
from scope.methods.heads import Heads


@dataclass(frozen=True)
class Entries:
    """What the slots of one row of a layer are filled with, in this order.

    Attributes:
        keys, values: ``[H, P, D]``.
        positions: ``[H, P]`` positions in the prompt; a merged token has its pivot's. FREE leaves a
            slot empty, so that heads may hold unequal numbers.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor

    def split(self, start: int, count: int) -> tuple["Entries", "Entries"]:
        """So many of them from one on, and the others."""
        stop = start + count
        parts = self.keys, self.values, self.positions
        return (
            Entries(*(part[:, start:stop] for part in parts)),
            Entries(*(torch.cat([part[:, :start], part[:, stop:]], dim=1) for part in parts)),
        )


@dataclass(frozen=True)
class Prompt:
    """One sequence in one layer, without padding.

    Attributes:
        queries: ``[H_q, L, D]``, after RoPE.
        keys: ``[H, L, D]``, after RoPE, H the number of cached heads; it divides H_q.
        values: ``[H, L, D]``.
        hidden: ``[L, hidden]``, what the layer's projections read.
        layer: number of the layer, from 0.
        scaling: factor on the query-key products.
        sliding_window: how many tokens back a query may look, itself included; None for all.
        score_dtype: probabilities and sums are rounded to this dtype before they are ranked.
        backend: what sums up attention; what suits the keys if None.
        log_sum_exp: ``[H_q, L]`` float32 of the causal attention's rows, where the model's own
            attention has told it.
        by_position: whether entries lie in the order of their positions, or as they were chosen.
        heads: whether they choose together.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    hidden: Tensor
    layer: int
    scaling: float
    sliding_window: int | None = None
    score_dtype: torch.dtype = torch.float32
    by_position: bool = True
    heads: Heads = field(default_factory=Heads)
    backend: Backend | None = None
    log_sum_exp: Tensor | None = None
    _sums: dict[tuple[int, int, bool, int], Tensor] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def length(self) -> int:
        return self.keys.shape[1]

    def received(
        self,
        last: int | None = None,
        reduction: GroupReduction = "mean",
        first_causal_row: int = 0,
        squared: bool = False,
        lag: int = 0,
    ) -> Tensor:
        """Attention that every key receives, summed over queries.

        Args:
            last: so many last queries; None for all.
            reduction: how the sums of the query heads of a group become one.
            first_causal_row: queries before it look at the whole prompt.
            squared: whether squares of attention are summed.
            lag: how many tokens a query must be behind a key to count, where it looks back.

        Returns:
            ``[H, L]`` float32. Memory is linear in L, and the sums are made once.
        """
        first_row = 0 if last is None else max(self.length - last, 0)
        key = first_row, first_causal_row, squared, lag
        if key not in self._sums:
            backend = self.backend or backend_for(self.keys)
            self._sums[key] = backend.column_sums(
                self.queries,
                self.keys,
                self.scaling,
                self.sliding_window,
                self.score_dtype,
                first_row,
                first_causal_row,
                self.log_sum_exp if first_causal_row <= first_row else None,
                squared=squared,
                lag=lag,
            )
        sums = self._sums[key].view(self.keys.shape[0], -1, self.length).to(self.score_dtype)
        return reduce_group(sums, reduction).float()

    def take(self, positions: Tensor) -> Entries:
        """The tokens at ``[H, P]`` positions as they are; FREE leaves a slot empty."""
        if self.by_position:
            sign = torch.iinfo(positions.dtype).min  # without it FREE is the largest number
            positions = (positions ^ sign).sort(dim=-1).values ^ sign
        places = positions.clamp(min=0)[..., None].expand(-1, -1, self.keys.shape[-1])
        return Entries(self.keys.gather(1, places), self.values.gather(1, places), positions)

    def whole(self) -> Entries:
        """Every token."""
        positions = torch.arange(self.length, device=self.keys.device)
        return Entries(self.keys, self.values, positions.expand(self.keys.shape[0], -1))


__all__ = ["FREE", "Entries", "Prompt"]
