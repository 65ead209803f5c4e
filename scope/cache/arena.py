"""Slots of all layers in one place, for budgets that are known only when a prompt has been read."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scope.cache.layer import SlotLayer, in_numbers, key_scale_for
from scope.errors import ScopeError
from scope.kernels import Backend
from scope.kernels.rounding import movable
from scope.kernels.tensors import FREE, Spans
from scope.methods.prompt import Entries
from scope.methods.score import Shape


class Arena:
    """One row's layers and heads share its slots; how many each has, its prompt decides.

    Shapes and addresses never change: where a head's slots are is read from the device.

    Args:
        like: ``[..., D]`` with the slots' dtype, device and head size.
        shape: N, B and H.
        slots: of each row.
        width: most that a head may have.
        state: shapes of each state per slot after H and S.

    Attributes:
        keys, values: ``[B * slots, D]``.
        positions, ranks: ``[B * slots]`` int32, as in `SlotTensors`.
        key_scale: likewise, ``[N, B, H, D]``.
        state: ``[B * slots, ...]`` float32 each.
        start: ``[N, B, H]`` int64, first slot of each head.
        room: ``[N, B, H]`` int32, how many it has; one until a prompt has come.
        gap: ``[N, B, H]`` int32, how many tokens less it keeps of the prompt than another head of
            its layer does.
        missing: ``[N, B]`` the same for all heads of a layer together, on the host.
    """

    def __init__(
        self,
        like: Tensor,
        shape: tuple[int, int, int],
        slots: int,
        width: int,
        state: Mapping[str, tuple[int, ...]],
    ) -> None:
        layers, batch_size, heads = shape
        everything, device = batch_size * slots, like.device
        self.slots, self.width = slots, width
        self.keys = like.new_zeros(everything, like.shape[-1])
        self.values = torch.zeros_like(self.keys)
        self.key_scale = key_scale_for(like, shape)
        self.positions = torch.full((everything,), FREE, dtype=torch.int32, device=device)
        self.ranks = torch.full_like(self.positions, FREE)
        self.state = {
            name: torch.zeros(everything, *own, device=device) for name, own in state.items()
        }
        one_each = torch.arange(layers * heads, device=device).view(layers, 1, heads)
        self.start = one_each + slots * torch.arange(batch_size, device=device)[:, None]
        self.room = torch.ones(shape, dtype=torch.int32, device=device)
        self.gap = torch.zeros_like(self.room)
        self.missing = np.zeros((layers, batch_size), np.int64)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values, free slots included."""
        beside = 0 if self.key_scale is None else self.key_scale.nbytes
        return self.keys.nbytes + self.values.nbytes + beside

    def lay_out(self, row: int, rooms: NDArray[np.int64], gaps: NDArray[np.int64]) -> None:
        """Start a row over with ``[N, H]`` slots for each head."""
        if rooms.sum() > self.slots:
            raise ScopeError(
                f"the budget gives {rooms.sum()} slots of the {self.slots} that a row has; its "
                "`total` must be what its shares never exceed"
            )
        start = row * self.slots + np.cumsum(rooms).reshape(rooms.shape) - rooms
        for part, counts in ((self.start, start), (self.room, rooms), (self.gap, gaps)):
            part[:, row] = torch.as_tensor(counts, dtype=part.dtype)
        self.missing[:, row] = gaps.sum(axis=1)
        own = slice(row * self.slots, (row + 1) * self.slots)
        self.positions[own] = self.ranks[own] = FREE
        # Free slots have weight 0, but 0 times what an overflow has left behind would be NaN.
        for part in (self.values, *self.state.values()):
            part[own] = 0


class SpannedLayer(SlotLayer):
    """A layer that has spans of an arena; tensors of slots are the arena's, without ``[B, H]``."""

    arena: Arena
    spans: Spans

    def join(self, arena: Arena, sizes: Mapping[str, int], state: Mapping[str, Shape]) -> None:
        """Take part in an arena of all layers, whose ``sizes`` the shapes of the state name."""
        self.arena, device = arena, arena.keys.device
        batch_size = arena.start.shape[1]
        self.keys, self.values = arena.keys, arena.values
        self.positions, self.ranks = arena.positions, arena.ranks
        self.key_scale = arena.key_scale and arena.key_scale.of(self.index)
        self.vacant = torch.zeros(batch_size, sizes["H"], dtype=torch.int32, device=device)
        self.draw = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.per_slot = set(arena.state)
        beside = {
            name: torch.zeros(batch_size, *in_numbers(own, sizes), device=device)
            for name, own in state.items()
            if name not in arena.state
        }
        self.state = beside | arena.state
        start, room, gap = (part[self.index] for part in (arena.start, arena.room, arena.gap))
        self.spans = Spans(start, room, gap, arena.width)
        self.working = None
        self.used = 0
        self.is_initialized = True

    def opened(self, rows: slice = slice(None), width: int | None = None) -> SlotLayer:
        """Copies of some rows' slots, or of the first of them, as a layer of its own has them.

        What is no slot's is not copied: it changes with the copies.
        """
        places, inside = self._places(rows, width)
        plain = SlotLayer(self.index, self.number)
        plain.keys, plain.values = self.keys[places], self.values[places]
        plain.key_scale = self.key_scale and self.key_scale.of(rows)
        plain.positions = self.positions[places].where(inside, FREE)
        plain.ranks = self.ranks[places].where(inside, FREE)
        plain.vacant, plain.draw = self.vacant[rows], self.draw[rows]
        plain.state = {
            name: part[places] if name in self.per_slot else part[rows]
            for name, part in self.state.items()
        }
        plain.per_slot, plain.initial, plain.working = self.per_slot, self.initial, None
        plain.used = self.used
        batch, heads, slots = places.shape
        start = torch.arange(0, places.numel(), slots, device=places.device)
        room, gap = self.spans.room[rows].clamp(max=slots), self.spans.gap[rows]
        plain.spans = Spans(start.view(batch, heads), room, gap, slots)
        return plain

    def take(self, plain: SlotLayer, rows: slice = slice(None)) -> None:
        """Take over what has become of opened rows."""
        places, inside = self._places(rows, plain.positions.shape[2])
        # What lies beyond a head's slots is written where its last one is, and as that is.
        last = inside.sum(dim=2, keepdim=True) - 1
        source = torch.arange(places.shape[2], device=places.device).minimum(last)
        pairs = [
            (self.keys, plain.keys),
            (self.values, plain.values),
            (self.positions, plain.positions),
            (self.ranks, plain.ranks),
            *((self.state[name], plain.state[name]) for name in self.per_slot),
        ]
        for ours, theirs in pairs:
            index = source.view(*source.shape, *[1] * (theirs.dim() - 3)).expand_as(theirs)
            movable(ours)[places] = movable(theirs).gather(2, index)
        self.used = max(self.used, plain.used)

    def write_prompt(
        self,
        backend: Backend,
        row: int,
        entries: Entries,
        draw: Tensor,
        remembered: Mapping[str, Tensor],
    ) -> None:
        # A head that keeps less than others has its tokens in the first slots, one after the other.
        order = (entries.positions == FREE).int().sort(dim=1, stable=True).indices
        wide = order[..., None].expand_as(entries.keys)
        moved = Entries(
            entries.keys.gather(1, wide),
            entries.values.gather(1, wide),
            entries.positions.gather(1, order),
        )
        own = slice(row, row + 1)
        plain = self.opened(own)
        plain.write_prompt(backend, 0, moved, draw, remembered)
        self.take(plain, own)
        self.vacant[row] -= self.spans.gap[row]

    def _places(self, rows: slice, width: int | None) -> tuple[Tensor, Tensor]:
        """``[b, H, width]`` where slots are in the arena, and which of them a head has."""
        spans = self.spans
        number = torch.arange(min(width or spans.width, spans.width), device=spans.start.device)
        last = spans.room[rows, :, None] - 1
        return spans.start[rows, :, None] + number.minimum(last), number <= last

    @property
    def kv_bytes(self) -> int:
        """Of all layers together."""
        return self.arena.kv_bytes

    def forget(self) -> None:
        super().forget()
        self.positions = self.ranks = self.state = None  # type: ignore[assignment]

    def get_max_length(self) -> int:
        return self.arena.width if self.is_initialized else -1
