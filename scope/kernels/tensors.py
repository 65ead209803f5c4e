"""What the kernels of a decode step take: tensors alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from scope.kernels.rounding import Codes

# The position and rank of a slot that holds no token.
FREE = -1

# The largest float of e4m3 below 256; 448 is the largest of all.
_JUST_BELOW = 240.0

GroupReduction = Literal["mean", "max"]
Kernel = Literal[
    "current",
    "cumulative",
    "peak",
    "recent",
    "random",
    "fresh random",
    "value range",
    "recurrence",
]


@dataclass(frozen=True)
class CompactTensors:
    """What one layer holds of its prompts in less room, beside its slots; all of it is attended to.

    Attributes:
        keys, values: codes of ``[B, H, P, D_k]`` and ``[B, H, P, D]``.
        key_bits, value_bits: of each code; None where numbers are as they are.
        group: tokens whose keys were rounded together, and at most so many channels of a value.
        channels: ``[B, H, D_k]`` int32, which of D there are of a key, in order; None if all are.
        positions: ``[B, H, P]`` int32, or FREE where there is no token.
        count: ``[B]`` int32, tokens of each row, whole groups.
        filled: the largest of them so far; the others need not be read.
    """

    keys: Codes
    values: Codes
    key_bits: int | None
    value_bits: int | None
    group: int
    channels: Tensor | None
    positions: Tensor
    count: Tensor
    filled: int

    @classmethod
    def whole(
        cls, keys: Tensor, values: Tensor, positions: Tensor, count: Tensor
    ) -> "CompactTensors":
        """Keys and values ``[B, H, P, D]`` as they are, all of which may be read."""
        return cls(
            keys=Codes.whole(keys),
            values=Codes.whole(values),
            key_bits=None,
            value_bits=None,
            group=1,
            channels=None,
            positions=positions,
            count=count,
            filled=keys.shape[2],
        )

    @property
    def nbytes(self) -> int:
        """Of keys and values, and of what says which channels there are."""
        beside = 0 if self.channels is None else self.channels.nbytes
        return self.keys.nbytes + self.values.nbytes + beside

    @property
    def token_bytes(self) -> int:
        """Of one token's keys and values in all heads."""
        batch, _, tokens = self.positions.shape
        return (self.keys.nbytes + self.values.nbytes) // max(batch * tokens, 1)


@dataclass(frozen=True)
class Spans:
    """Where the slots of one layer's heads are, where all layers share one arena.

    Attributes:
        start: ``[B, H]`` int64, the first slot.
        room: ``[B, H]`` int32, how many there are.
        gap: ``[B, H]`` int32, how many tokens less the head keeps of the prompt than the one that
            ranks are counted by: so many ranks in front of the first generated one are no token's.
        width: most slots that a head may have.
    """

    start: Tensor
    room: Tensor
    gap: Tensor
    width: int


@dataclass(frozen=True)
class KeyScale:
    """What makes keys of the codes in slots of 8 bits: ``code * scale + shift``.

    Floats of 8 bits have three bits after the first, so that a channel that is far from 0 in every
    token would lose what tells tokens apart. Attention needs no restored keys: a query times
    ``scale`` meets the codes, and its product with ``shift`` is the same for every token.

    Attributes:
        scale, shift: ``[B, H, D]`` float32, of a row's prompt.
    """

    scale: Tensor
    shift: Tensor

    @property
    def nbytes(self) -> int:
        return self.scale.nbytes + self.shift.nbytes

    def fit(self, keys: Tensor, there: Tensor) -> None:
        """Choose both for those of ``[..., H, P, D]`` keys that are there, ``[..., H, P]``.

        The shift is the mean. Relative errors are least just below a power of two, where the
        scale puts what is furthest from the mean; which power leaves room for a later key as far
        out as the largest of any channel.
        """
        keys = keys.float().masked_fill(~there.unsqueeze(-1), 0.0)
        self.shift.copy_(keys.sum(dim=-2) / there.sum(dim=-1, keepdim=True).clamp(min=1))
        apart = (keys - self.shift.unsqueeze(-2)).masked_fill(~there.unsqueeze(-1), 0.0)
        furthest = apart.abs().amax(dim=-2)
        largest = keys.abs().amax(dim=(-2, -1)).clamp(min=2.0**-10).unsqueeze(-1)
        furthest = furthest.maximum(largest * 2.0**-20)
        power = (largest / furthest).log2().ceil().clamp(min=0)
        self.scale.copy_(furthest * power.exp2() / _JUST_BELOW)

    def of(self, rows: slice | int) -> "KeyScale":
        """Views of some rows."""
        return KeyScale(self.scale[rows], self.shift[rows])

    def codes(self, keys: Tensor) -> Tensor:
        """Of keys ``[..., H, P, D]``, float32."""
        return (keys.float() - self.shift.unsqueeze(-2)) / self.scale.unsqueeze(-2)

    def restored(self, codes: Tensor) -> Tensor:
        """Keys ``[..., H, P, D]``, float32."""
        return codes.float() * self.scale.unsqueeze(-2) + self.shift.unsqueeze(-2)


@dataclass(frozen=True)
class SlotTensors:
    """The slots of one layer. With ``spans``, what has slots may have one dimension from B to S.

    Attributes:
        keys, values: ``[B, H, S, D]``.
        positions: ``[B, H, S]`` int32, the position of the token in its sequence, or FREE.
        ranks: ``[B, H, S]`` int32, the order in which a head's tokens entered the cache, or FREE.
        vacant: ``[B, H]`` int32, the free slot that the next token takes.
        key_scale: what ``keys`` are codes by; None where they are keys.
        compact: what is held of the prompts outside the slots; None if nothing is.
        spans: where each head's slots are; None where B, H and S say so.
        last_queries: ``[B, H_q, w, D]`` as they come, or float32 beside keys of 8 bits, rank r in
            place r % w; None if nobody asks.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    ranks: Tensor
    vacant: Tensor
    key_scale: KeyScale | None = None
    compact: CompactTensors | None = None
    spans: Spans | None = None
    last_queries: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B, H, S and D."""
        if self.spans is None:
            batch, heads, slots, head_dim = self.keys.shape
            return batch, heads, slots, head_dim
        return *self.spans.start.shape, self.spans.width, self.keys.shape[-1]  # type: ignore[return-value]

    def first(self, count: int) -> "SlotTensors":
        """Views of the first slots."""
        return SlotTensors(
            self.keys[:, :, :count],
            self.values[:, :, :count],
            self.positions[:, :, :count],
            self.ranks[:, :, :count],
            self.vacant,
        )

    def row(self, row: int) -> "SlotTensors":
        """Views of one row, as a batch."""
        return SlotTensors(
            self.keys[row, None],
            self.values[row, None],
            self.positions[row, None],
            self.ranks[row, None],
            self.vacant[row, None],
        )


@dataclass(frozen=True)
class StepCounts:
    """What the host has counted for one layer and step.

    Attributes:
        position: ``[B]`` int32, of each row's new token.
        newest: ``[B]`` int32, its rank.
        protected: ``[B]`` int32; ranks below it are never evicted.
        losses: ``[B]`` int32, tokens that each head loses, at most as many as may go.
        most_losses: the largest of them, for who may not wait for the device to say so.
        used: slots from the first on that were ever taken; the others need not be read.
    """

    position: Tensor
    newest: Tensor
    protected: Tensor
    losses: Tensor
    most_losses: int
    used: int


@dataclass(frozen=True)
class NewTokens:
    """One token per row.

    Attributes:
        queries: ``[B, H_q, D]``, H dividing H_q.
        keys, values: ``[B, H, D]``.
        rotation: ``[B, D]`` cos and sin, where queries and keys come without RoPE.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    rotation: tuple[Tensor, Tensor] | None = None

    @property
    def turned(self) -> "NewTokens":
        """The same after RoPE."""
        if self.rotation is None:
            return self
        cos, sin = (part[:, None] for part in self.rotation)
        queries, keys = (rotated(states, cos, sin) for states in (self.queries, self.keys))
        return NewTokens(queries, keys, self.values)


@dataclass(frozen=True)
class Listed:
    """Slots by name, for rows that attend to these alone; nothing else is read.

    The new token takes the place of the first, the next one that of the second, and so on around.
    Slots are ranks here: no token has left.

    Attributes:
        slots: ``[B, H, K]`` int32, FREE for none.
        since: ``[B]`` int32, rank of the newest token when the list was made.
        full: ``[B]`` int32, 1 for a row that attends to all slots and has its list left alone; None
            where no row does.
        keys, values: ``[B, H, K, D]`` copies of what is listed, which are read instead where the
            slots are in host memory; None where they are not.
    """

    slots: Tensor
    since: Tensor
    full: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None

    def row(self, row: int) -> "Listed":
        """Views of one row, as a batch."""
        return Listed(
            self.slots[row, None],
            self.since[row, None],
            None if self.full is None else self.full[row, None],
            None if self.keys is None else self.keys[row, None],
            None if self.values is None else self.values[row, None],
        )


@dataclass(frozen=True)
class Sight:
    """What a query sees.

    Attributes:
        scaling: factor on the query-key products.
        sliding_window: how many tokens back it may look, itself included; None for all.
        listed: the slots to attend to; None for all.
    """

    scaling: float
    sliding_window: int | None = None
    listed: Listed | None = None


@dataclass(frozen=True)
class Received:
    """How the attention that a slot receives becomes one number.

    Attributes:
        reduction: over the query heads of a group.
        dtype: probabilities are rounded to it first.
    """

    reduction: GroupReduction = "mean"
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Mixer:
    """One layer's convolution over what is merged, in the order of positions, P entries ``[K; V]``.

        A = softmax(relu(conv1d([K; V])))                    [M, P], over the P entries
        W = (1 - g) onehot(pivots) + g A                     [M, P], rows sum to 1
        K' = W K,  V' = W V

    Attributes:
        weight: ``[M, 2D, taps]``, an odd number of taps.
        bias: ``[M]``.
        gate: ``[]``, g.
    """

    weight: Tensor
    bias: Tensor
    gate: Tensor


@dataclass(frozen=True)
class Ranking:
    """What decides between tokens in a kernel that attends and evicts at once.

    Attributes:
        kernel: what they compete by; None if none ever leaves.
        received: how attention becomes one number.
        recent: R, newest tokens that stay.
        state: ``[B, H, S]`` float32 each, what is remembered of every token, by name.
        constants: what the score is set to, by name.
        draw: ``[B]`` int64, what chance depends on.
        layer: number of the layer, likewise.
    """

    kernel: Kernel | None
    received: Received
    recent: int
    state: Mapping[str, Tensor]
    constants: Mapping[str, Any]
    draw: Tensor
    layer: int


def mixed(numbers: Tensor) -> Tensor:
    """Well mixed 32-bit numbers of int64 ones."""
    for _ in range(2):
        numbers = ((numbers ^ (numbers >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return numbers ^ (numbers >> 16)


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to ``[..., D]``: the i-th of D and the one D/2 later turn as a pair."""
    first, second = states.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return states * cos + turned * sin


def by_worth_then_newest(worth: Tensor, ranks: Tensor) -> Tensor:
    """int64 keys: the lower scored first, and of equals the newest, whatever slots they are in.

    Equals are common: attention to a token underflows to 0. Without a rule a batch would evict
    others than a row alone. The bits of floats that are not negative are ordered as the floats
    are; those of negative ones the other way round, so all but their sign are turned.
    """
    bits = worth.contiguous().view(torch.int32)
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) - ranks


def reduce_group(values: Tensor, reduction: GroupReduction) -> Tensor:
    """Reduce ``[..., H_kv, group, n]`` over the query heads that share a KV head.

    Returns:
        ``[..., H_kv, n]``.
    """
    return values.mean(dim=-2) if reduction == "mean" else values.amax(dim=-2)
