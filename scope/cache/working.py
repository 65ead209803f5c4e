"""What most steps of a layer attend to, where a strategy keeps all and reads a part."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scope.kernels import Backend
from scope.kernels.tensors import FREE, Listed, SlotTensors

Drifted = Callable[[Tensor, Tensor], Tensor]


@dataclass
class WorkingSet:
    """The working sets of one layer's rows, and by what each was chosen.

    Attributes:
        listed: slots, the least first, and copies of them where the slots are in host memory.
        query: ``[B, D]`` float32, of a row's last full step, mean over heads.
        refreshes: ``[B]`` int64, full steps of the row so far, whatever its prompts.
    """

    listed: Listed
    query: Tensor
    refreshes: Tensor

    @classmethod
    def allocate(cls, positions: Tensor, size: int, like: Tensor, offload: bool) -> "WorkingSet":
        """Of K = ``size`` slots, or of all where there are less.

        Args:
            positions: ``[B, H, S]``.
            size: K.
            like: ``[..., D]`` with the dtype of slots and their head size.
            offload: whether copies of them are kept beside.
        """
        batch, heads, slots = positions.shape
        shape, head_dim = (batch, heads, min(size, slots)), like.shape[-1]
        return cls(
            Listed(
                positions.new_full(shape, FREE),
                since=positions.new_zeros(batch),
                keys=like.new_zeros(*shape, head_dim) if offload else None,
                values=like.new_zeros(*shape, head_dim) if offload else None,
            ),
            query=torch.zeros(batch, head_dim, device=positions.device),
            refreshes=positions.new_zeros(batch, dtype=torch.int64),
        )

    @property
    def nbytes(self) -> int:
        lists = self.listed.slots.nbytes + self.listed.since.nbytes
        return lists + self.copied_bytes + self.query.nbytes + self.refreshes.nbytes

    @property
    def copied_bytes(self) -> int:
        """Of copies of what is listed."""
        parts = self.listed.keys, self.listed.values
        return sum(part.nbytes for part in parts if part is not None)

    def begin(
        self, backend: Backend, row: int, slots: SlotTensors, worth: Tensor, query: Tensor
    ) -> None:
        """Choose a row's first set of what is held of its prompt.

        Args:
            backend: what chooses.
            row: which.
            slots: those that the prompt has taken.
            worth: ``[H, L]`` of every token of the prompt.
            query: ``[H_q, D]`` of the last token.
        """
        own, listed = slots.row(row), self.listed.row(row)
        newest = torch.full_like(listed.since, own.positions.shape[-1] - 1)
        held = worth[None].gather(2, own.positions.long().clamp(min=0))
        _list_anew(backend, listed, torch.ones_like(newest), own, held, newest)
        self.query[row] = query.float().mean(dim=0)

    def drift(self, may: Tensor, drifted: Drifted, queries: Tensor) -> Tensor:
        """Which rows take a full step that they may take: ``[B]`` int32.

        Args:
            may: ``[B]`` int32.
            drifted: as in `Strategy`.
            queries: ``[B, H_q, D]`` of the new tokens, after RoPE.
        """
        query = queries.float().mean(dim=1)
        full = may * drifted(query, self.query)
        self.query.copy_(query.where(full[:, None] != 0, self.query))
        return full

    def refresh(
        self, backend: Backend, full: Tensor, slots: SlotTensors, worth: Tensor, newest: Tensor
    ) -> None:
        """Choose anew in the rows of a full step, by ``[B, H, n]`` worth of the first slots."""
        _list_anew(backend, self.listed, full, slots.first(worth.shape[-1]), worth, newest)
        self.refreshes.add_(full)


def _list_anew(
    backend: Backend,
    listed: Listed,
    full: Tensor,
    slots: SlotTensors,
    worth: Tensor,
    newest: Tensor,
) -> None:
    backend.choose(listed, full, worth.masked_fill(slots.ranks == FREE, -torch.inf), newest)
    if listed.keys is not None:
        backend.bring(listed, full, slots.keys, slots.values)
