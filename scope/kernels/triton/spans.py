# ruff: noqa: ANN201  (what a kernel returns, Triton knows)
"""Where each head's slots are: one after the other, or where an arena says."""

import triton
import triton.language as tl
from torch import Tensor

from scope.kernels.tensors import SlotTensors


def span_pointers(slots: SlotTensors) -> tuple[Tensor | None, ...]:
    """What `span` reads."""
    spans = slots.spans
    return (None,) * 3 if spans is None else (spans.start, spans.room, spans.gap)


@triton.jit
def span(start_ptr, room_ptr, gap_ptr, pair, slots, SPANS: tl.constexpr):
    """A head's first slot, how many it has, and how far its slots lag behind the ranks."""
    first_slot, room, gap = pair * slots, slots, 0
    if SPANS:
        first_slot = tl.load(start_ptr + pair)
        room = tl.load(room_ptr + pair)
        gap = tl.load(gap_ptr + pair)
    return first_slot, room, gap
