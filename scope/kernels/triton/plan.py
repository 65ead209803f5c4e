"""How a GPU is shared out over the programs of decode attention."""

from dataclasses import dataclass

import triton

from scope.kernels import processors, shared_memory
from scope.kernels.tensors import SlotTensors

_MOST_SPLITS = 32
# Shared memory of a program beside its blocks.
_OTHER_MEMORY = 2**11
# Programs of a row at least, which may be left alone when all others have ended.
_OF_A_ROW = 8
# Share of the programs that run at the same time that keeps the memory busy.
_BUSY = 0.6


@dataclass(frozen=True)
class Plan:
    """How the GPU is shared out.

    Attributes:
        splits: of what is held of each head, with a program each.
        compact_splits: of these, the first, which are of what is beside the slots.
        block: slots that a program reads at once.
        stages: blocks on their way at the same time.
        warps: of these programs.
        finishing_warps: of the second kernel's programs.
    """

    splits: int
    compact_splits: int
    block: int
    stages: int
    warps: int
    finishing_warps: int


def plan_of(slots: SlotTensors, group: int, length: int) -> Plan:
    """For these slots, so many queries per head, and most slots that a head reads.

    As many programs as run at the same time, without a second wave of a few, where these are not
    too few for a row or for the memory. Where there are more heads than that, larger blocks and
    smaller second programs keep the waves even. Beside what has few bits, smaller blocks of slots
    leave room for more programs, which instructions wait for. Found on an H200 and an H100, for 2
    or 8 heads per row of dimension 64 or 128 and 1,281 to 8,193 slots.
    """
    batch, heads = slots.shape[:2]
    compact, device = slots.compact, slots.vacant.device
    beside = compact.positions.shape[2] if compact else 0
    few_bits = compact is not None and compact.key_bits is not None
    block = 16 if few_bits and slots.keys.itemsize > 1 else 32
    stages, programs = _room(slots, block)
    if batch * heads > programs and not beside:
        return Plan(1, 0, 64, _room(slots, block=64)[0], warps=2, finishing_warps=2)
    held = beside + length
    most = min(_MOST_SPLITS, triton.cdiv(held, 32))
    splits = programs // (batch * heads)
    if splits * batch * heads < _BUSY * programs:
        splits = 4
    splits = min(max(splits, triton.cdiv(_OF_A_ROW, heads)), most)
    splits = max(splits, 4 if beside else 1)
    of_compact = min(max(round(splits * beside / held), 1), splits - 1) if beside else 0
    warps = 2 if few_bits and batch * heads * splits <= 2 * processors(device) else 1
    finishing_warps = 4 if splits > 16 or group > 4 else 2
    return Plan(splits, of_compact, block, stages, warps, finishing_warps)


def _room(slots: SlotTensors, block: int) -> tuple[int, int]:
    """Stages of such blocks, three if they fit, and how many programs run at the same time."""
    device = slots.vacant.device  # keys may be in host memory
    memory = shared_memory(device)
    stage = 2 * block * slots.keys.shape[-1] * slots.keys.itemsize
    stages = max(1, min(3, (memory - _OTHER_MEMORY) // stage))
    return stages, processors(device) * (memory // (stages * stage + _OTHER_MEMORY))
