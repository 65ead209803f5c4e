"""The slots of one layer."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from scope.cache.latent import Latents
from scope.cache.merged import Merged
from scope.cache.working import WorkingSet
from scope.errors import ScopeError
from scope.kernels import Backend
from scope.kernels.tensors import FREE, CompactTensors, KeyScale, SlotTensors, Spans, StepCounts
from scope.methods.prompt import Entries
from scope.methods.score import Shape


class SlotLayer(CacheLayerMixin):
    """Keys and values in fixed places; evicting a token frees its slot for the next one.

    Args:
        index: its place among the layers that have slots.
        number: its place in the model; the same if all have.

    Attributes:
        keys, values, positions, ranks, vacant, key_scale: as in `SlotTensors`.
        offloaded: whether keys and values lie in host memory.
        state: what score and strategy remember, ``[B, ...]`` float32 each; those named in
            ``per_slot`` are ``[B, H, S, ...]``.
        working: what steps attend to that are not full; None where all are.
        compact: what is held of prompts in less room, beside the slots; None if nothing is.
        latent: the same as low-rank latents; None if nothing is.
        merged: the same together with a neighbouring layer; None if nothing is.
        spans: where each head's slots are, if not all have as many one after the other.
        draw: ``[B]`` int64, a 32-bit number that chance makes of each row's prompt.
        counts: of this step.
        full: ``[B]`` int32, 1 for rows that may attend to all that is held at this step.
        refreshing: whether some row may, and working sets are chosen after it.
        used: slots from the first on that have ever been taken; the others need not be read.
        initial: what states of a row start with that are not per slot; 0 if it is not there.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor
    counts: StepCounts
    full: Tensor

    def __init__(self, index: int, number: int | None = None) -> None:
        super().__init__()
        self.index = index
        self.number = index if number is None else number
        self.key_scale: KeyScale | None = None
        self.compact: CompactTensors | None = None
        self.latent: Latents | None = None
        self.merged: Merged | None = None
        self.spans: Spans | None = None
        self.initial: Mapping[str, Tensor] = {}
        self.used = 0
        self.refreshing = self.offloaded = False

    def allocate(
        self,
        like: Tensor,
        batch_size: int,
        heads: int,
        query_heads: int,
        slots: int,
        state: Mapping[str, Shape],
        working_set: int | None = None,
        offload: bool = False,
    ) -> None:
        """Allocate all slots.

        Args:
            like: ``[..., D]`` with their dtype, device and head size.
            batch_size: B.
            heads: H.
            query_heads: H_q.
            slots: S.
            state: shapes of each state after the batch's.
            working_set: K, slots that steps attend to which are not full; None where all are.
            offload: whether keys and values lie in host memory, and copies of the working set on
                the device.
        """
        shape, head_dim = (batch_size, heads, slots), like.shape[-1]
        sizes = sizes_of(heads, query_heads, slots, head_dim)
        self.offloaded = offload
        pinned = offload and like.is_cuda
        home = like.new_empty(0, device="cpu") if pinned else like
        self.keys = home.new_zeros((*shape, head_dim), pin_memory=pinned)
        self.values = home.new_zeros((*shape, head_dim), pin_memory=pinned)
        self.key_scale = key_scale_for(like, shape[:2])
        self.positions = torch.full(shape, FREE, dtype=torch.int32, device=like.device)
        self.ranks = torch.full_like(self.positions, FREE)
        self.vacant = torch.zeros(shape[:2], dtype=torch.int32, device=like.device)
        self.draw = torch.zeros(batch_size, dtype=torch.int64, device=like.device)
        # Queries are kept as they come; of 8 bits they are not, whatever keys are.
        as_they_come = like.dtype if like.itemsize > 1 else torch.float32
        self.state = {
            name: torch.zeros(
                batch_size,
                *in_numbers(own, sizes),
                dtype=as_they_come if name == "queries" else torch.float32,
                device=like.device,
            )
            for name, own in state.items()
        }
        self.per_slot = per_slot(state)
        self.working = (
            None
            if working_set is None
            else WorkingSet.allocate(self.positions, working_set, like, offload)
        )
        self.used = 0
        self.is_initialized = True

    @property
    def is_like_others(self) -> bool:
        """Whether heads of several such layers can be written as those of one."""
        own = self.key_scale, self.latent, self.merged, self.working, self.spans
        return not self.offloaded and all(part is None for part in own)

    @property
    def slot_bytes(self) -> int:
        """Bytes of keys and values in slots, free ones included."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def beside_bytes(self) -> int:
        """Bytes beside the slots: scales, compact tokens, and lists of what is to be read."""
        lists = None if self.working is None else self.working.listed.slots
        parts = self.key_scale, self.compact, self.latent, self.merged, lists
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def lent_bytes(self) -> int:
        """Bytes beside another layer's slots that steps of this one read."""
        if self.merged is None or self.merged.below is None:
            return 0
        return self.merged.directions.nbytes

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values on the device, and of what is beside them."""
        copies = 0 if self.working is None else self.working.copied_bytes
        return self.beside_bytes + (copies if self.offloaded else self.slot_bytes)

    def forget(self) -> None:
        """Give the memory back."""
        self.is_initialized = False
        self.keys = self.values = None  # type: ignore[assignment]
        self.key_scale = self.compact = self.latent = self.merged = None
        self.used = 0

    def opened(self, rows: slice = slice(None), width: int | None = None) -> "SlotLayer":
        """This layer, whose slots lie in rows and heads of equal length."""
        return self

    @property
    def slots(self) -> SlotTensors:
        """What kernels work on."""
        return SlotTensors(
            self.keys,
            self.values,
            self.positions,
            self.ranks,
            self.vacant,
            self.key_scale,
            self.compact,
            self.spans,
            self.state.get("queries"),
        )

    def write_prompt(
        self,
        backend: Backend,
        row: int,
        entries: Entries,
        draw: Tensor,
        remembered: Mapping[str, Tensor],
    ) -> None:
        """Start a row over with what is held of a prompt.

        Args:
            backend: what computes.
            row: which sequence of the batch.
            entries: in the order of their ranks.
            draw: int64 scalar, what chance makes of the prompt.
            remembered: ``[H, L]`` what the prompt's tokens start with, for states per slot.
        """
        positions = entries.positions
        backend.fill(self.slots, row, entries.keys, entries.values, positions)
        self.draw[row] = draw
        self.start_over(row, positions, remembered)

    def start_over(self, row: int, positions: Tensor, remembered: Mapping[str, Tensor]) -> None:
        """Set what is remembered of a row whose slots hold the tokens at ``[H, P]`` positions."""
        count = positions.shape[1]
        for name, state in self.state.items():
            state[row] = self.initial.get(name, 0.0)
            if name in remembered:
                state[row, :, :count] = remembered[name].gather(1, positions.long().clamp(min=0))
        self.used = max(self.used, count)

    def clear_state_of_new(self) -> None:
        """States of the slot that the new token takes start at 0."""
        slot = self.vacant[..., None].long()
        for name in self.per_slot:
            state = self.state[name]
            place = slot.view(*slot.shape, *[1] * (state.dim() - slot.dim()))
            state.scatter_(2, place.expand(-1, -1, -1, *state.shape[3:]), 0.0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise ScopeError(_NOT_PATCHED)

    def update(self, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        raise ScopeError(_NOT_PATCHED)

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return self.keys.shape[2] if self.is_initialized else -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0


def key_scale_for(like: Tensor, shape: tuple[int, ...]) -> KeyScale | None:
    """For keys of ``shape``, ``[..., D]`` in all, where slots have 8 bits."""
    if like.itemsize > 1:
        return None
    scale = like.new_ones(*shape, like.shape[-1], dtype=torch.float32)
    return KeyScale(scale, torch.zeros_like(scale))


def sizes_of(heads: int, query_heads: int, slots: int, head_dim: int) -> Mapping[str, int]:
    """What the letters of a `Shape` stand for."""
    return {"H": heads, "H_q": query_heads, "S": slots, "D": head_dim, "D/2": head_dim // 2}


def in_numbers(shape: Shape, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A shape with its letters replaced."""
    return tuple(sizes[size] if isinstance(size, str) else size for size in shape)


def per_slot(state: Mapping[str, Shape]) -> set[str]:
    """The names of what there is of every slot."""
    for name, own in state.items():
        if "S" in own and own[:2] != ("H", "S"):
            raise ScopeError(f"state {name} has shape {own}; one of slots begins with H, S")
        if name == "queries" and (len(own) != 3 or own[0] != "H_q" or own[2] != "D"):
            raise ScopeError(f"state queries has shape {own}; it is a ring, H_q, w, D")
    return {name for name, own in state.items() if "S" in own}


_NOT_PATCHED = (
    "a SlotCache was given to a model whose attention is not patched; generate inside "
    "`with scope.patch(model):`"
)
