"""What most steps of a layer attend to, where a strategy keeps all and reads a part."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scope.kernels import Backend
from scope.kernels.tensors import FREE, Listed

Drifted = Callable[[Tensor, Tensor], Tensor | None]


@dataclass
class WorkingSet:
    """The working sets of one layer's rows, and by what each was chosen.

    Attributes:
        listed: slots, the least first.
        query: ``[B, D]`` float32, of a row's last full step, mean over heads.
        refreshes: ``[B]`` int64, full steps of the row so far, whatever its prompts.
    """

    listed: Listed
    query: Tensor
    refreshes: Tensor

    @classmethod
    def allocate(cls, positions: Tensor, size: int, head_dim: int) -> "WorkingSet":
        """Of K = ``size`` slots, or of all where there are less: positions are ``[B, H, S]``."""
        batch, heads, slots = positions.shape
        return cls(
            Listed(
                positions.new_full((batch, heads, min(size, slots)), FREE),
                since=positions.new_zeros(batch),
            ),
            query=torch.zeros(batch, head_dim, device=positions.device),
            refreshes=positions.new_zeros(batch, dtype=torch.int64),
        )

    @property
    def nbytes(self) -> int:
        parts = self.listed.slots, self.listed.since, self.query, self.refreshes
        return sum(part.nbytes for part in parts)

    def begin(
        self, backend: Backend, row: int, worth: Tensor, positions: Tensor, query: Tensor
    ) -> None:
        """Choose a row's first set of what is held of its prompt.

        Args:
            backend: what chooses.
            row: which.
            worth: ``[H, L]`` of every token of the prompt.
            positions: ``[H, P]`` of what is held, FREE for none.
            query: ``[H_q, D]`` of the last token.
        """
        held = worth.gather(1, positions.long().clamp(min=0))
        held = held.masked_fill(positions == FREE, -torch.inf)
        slots, since = self.listed.slots[row, None], self.listed.since[row, None]
        newest = torch.full_like(since, positions.shape[-1] - 1)
        backend.choose(Listed(slots, since), torch.ones_like(since), held[None], newest)
        self.query[row] = query.float().mean(dim=0)

    def drift(self, may: Tensor, drifted: Drifted, queries: Tensor) -> Tensor:
        """Which rows take a full step that they may take: ``[B]`` int32.

        Args:
            may: ``[B]`` int32.
            drifted: as in `Strategy`.
            queries: ``[B, H_q, D]`` of the new tokens, after RoPE.
        """
        query = queries.float().mean(dim=1)
        do = drifted(query, self.query)
        full = may if do is None else may * do
        self.query.copy_(query.where(full[:, None] != 0, self.query))
        return full

    def refresh(
        self, backend: Backend, full: Tensor, worth: Tensor, ranks: Tensor, newest: Tensor
    ) -> None:
        """Choose anew in the rows of a full step, by ``[B, H, n]`` worth."""
        held = worth.masked_fill(ranks == FREE, -torch.inf)
        backend.choose(self.listed, full, held, newest)
        self.refreshes.add_(full)
