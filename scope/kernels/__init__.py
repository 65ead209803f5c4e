"""Decode attention over slots, column sums of a prompt's attention, and what lies around them.

Kernels take tensors; they know no cache and no method. `backend_for` chooses once between Triton
and plain torch, and nobody asks again.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Protocol, TypeGuard, cast, overload

import torch
from torch import Tensor

from scope.kernels.tensors import (
    Listed,
    Mixer,
    NewTokens,
    Ranking,
    Received,
    Sight,
    SlotTensors,
    StepCounts,
)


class Backend(Protocol):
    """What a cache computes with: the module `reference`, or `triton.backend` on a GPU."""

    @overload
    def attend(
        self, slots: SlotTensors, counts: StepCounts, new: NewTokens, sight: Sight
    ) -> tuple[Tensor, None]: ...

    @overload
    def attend(
        self,
        slots: SlotTensors,
        counts: StepCounts,
        new: NewTokens,
        sight: Sight,
        received: Received,
    ) -> tuple[Tensor, Tensor]: ...

    def attend(
        self,
        slots: SlotTensors,
        counts: StepCounts,
        new: NewTokens,
        sight: Sight,
        received: Received | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Append one token per row and attend to what is seen.

        Returns:
            Output ``[B, H_q, D]``, and where ``received`` says how, the attention that every slot
            receives, ``[B, H, n]`` float32. n is S, or the used slots where only they are read.
        """

    def look(self, slots: SlotTensors, counts: StepCounts, new: NewTokens, sight: Sight) -> Tensor:
        """Attend with the queries alone to what is held after a step: output ``[B, H_q, D]``.

        Nothing is appended, and no part of the slots is ``listed``.
        """

    def evict(
        self, slots: SlotTensors, counts: StepCounts, worth: Tensor | None, recent: int
    ) -> None:
        """Free the slots of the least worthy tokens, and choose the slot of the next one.

        Of those neither protected nor recent, the lower of ``worth`` leave first, and of equals the
        newest. It is ``[B, H, n]`` float32 as `attend` gives it; None frees no slot.
        """

    def choose(self, listed: Listed, full: Tensor, worth: Tensor, newest: Tensor) -> None:
        """List anew what full rows attend to: the slots of the largest worth, the least first.

        Of equals the newest comes first, and is left out first; FREE stands in front where there
        are too few. Slots are ranks.

        Args:
            listed: changed in place.
            full: ``[B]`` int32, 1 for the rows whose lists are.
            worth: ``[B, H, n]`` float32, of the first slots; -inf where there is no token.
            newest: ``[B]`` int32, rank of each row's newest token.
        """

    def bring(self, listed: Listed, full: Tensor, keys: Tensor, values: Tensor) -> None:
        """Copy what full rows list from host memory to the device.

        Args:
            listed: whose copies are changed, in place.
            full: ``[B]`` int32, 1 for the rows that are copied.
            keys, values: ``[B, H, S, D]``, all slots.
        """

    def fill(
        self, slots: SlotTensors, row: int, keys: Tensor, values: Tensor, positions: Tensor
    ) -> None:
        """Start a row over with the tokens of a prompt, the others of its slots being free.

        Args:
            slots: changed in place; all of the layer's.
            row: which sequence of the batch.
            keys, values: ``[H, P, D]`` in the order of their ranks, any strides but for D.
            positions: ``[H, P]`` integers; FREE leaves a slot empty.
        """

    def fold(
        self,
        keys: Tensor,
        values: Tensor,
        ranks: Tensor,
        worth: Tensor,
        leaving: Tensor,
        last: Tensor,
        most: int,
        mixer: Mixer,
    ) -> None:
        """Mix what leaves, and the least worthy beside it, into those of these that stay.

        Where something leaves, as many of the lowest worth are pivots as make up ``most`` together
        with it, of equals the newest first. What becomes of them `Mixer` says, whose channels are
        at least as many. A head from which nothing leaves stays as it is.

        Args:
            keys, values: ``[B, H, S, D]``, the pivots' changed in place; strides alike, any but
                for D.
            ranks: ``[B, H, S]`` int32, the order of positions; FREE where there is nothing.
            worth: ``[B, H, S]`` float32.
            leaving: ``[B, H, S]`` bool, at most ``most`` of a head.
            last: ``[B]`` int32, the last rank of a pivot.
            most: entries merged of a head.
            mixer: of the layer.
        """

    def column_sums(
        self,
        queries: Tensor,
        keys: Tensor,
        scaling: float,
        sliding_window: int | None,
        score_dtype: torch.dtype,
        first_row: int = 0,
        first_causal_row: int = 0,
        log_sum_exp: Tensor | None = None,
        squared: bool = False,
        lag: int = 0,
    ) -> Tensor:
        """Attention that every key receives from each query head, summed over the rows.

        Args:
            queries: ``[H_q, L, D]``, any strides but for D.
            keys: ``[H, L, D]``, H dividing H_q; likewise.
            scaling: factor above 0 on the query-key products.
            sliding_window: how many tokens back a query may look, itself included; None for all.
            score_dtype: probabilities are rounded to it before they are added up, in float32.
            first_row: rows before it are left out.
            first_causal_row: rows before it look at the whole prompt, but for the sliding window.
            log_sum_exp: ``[H_q, L]`` float32, natural logarithm of the sum that each row's
                probabilities are normalised by, where somebody has it: it is half of the work.
            squared: whether the squares of probabilities are added up instead.
            lag: a causal row adds nothing to the keys less than so many tokens before it.

        Returns:
            ``[H_q, L]`` float32; ``[H, L, L]`` never exists, memory is linear in L.
        """

    def attention_sums(
        self,
        queries: Tensor,
        keys: Tensor,
        ranks: Tensor,
        last: Tensor,
        scaling: float,
        positions: Tensor | None = None,
        after: Tensor | None = None,
        largest: bool = False,
    ) -> Tensor:
        """Attention that every slot receives from a few queries of each head, added up.

        Args:
            queries: ``[B, H_q, w, D]``, H dividing H_q; rounded to the keys' dtype.
            keys: ``[B, H, S, D]``.
            ranks: ``[B, H, S]`` int32; FREE where nothing is seen.
            last: ``[B, w]``, the last rank that each query sees; FREE for one that sees nothing.
            scaling: factor above 0 on the query-key products.
            positions: ``[B, H, S]`` int32; None where they do not matter.
            after: ``[B, w]``, the position after which each query sees; None likewise.
            largest: whether the largest is wanted instead of the sum.

        Returns:
            ``[B, H_q, S]`` float32; memory does not grow with w.
        """

    def product_sums(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Products of a few queries of each head with every key, and their squares, added up.

        Args:
            queries: ``[B, H_q, w, D]``, H dividing H_q; rounded to the keys' dtype.
            keys: ``[B, H, S, D]``.

        Returns:
            Two ``[B, H_q, S]`` float32; memory does not grow with w.
        """

    def cosine_sums(self, keys: Tensor, ranks: Tensor, similar: float) -> Tensor:
        """Sum of every key's cosines with the other ones of its head, but for some.

        A cosine with a key counts as 0 for the newest of the others that are similar to that key.

        Args:
            keys: ``[B, H, S, D]``.
            ranks: ``[B, H, S]`` int32, their order; FREE where there is no key.
            similar: a cosine, not negative, above which keys are.

        Returns:
            ``[B, H, S]`` float32, 0 where there is no key; memory is linear in S.
        """


class FusingBackend(Backend, Protocol):
    """One that also has kernels which attend and evict at once."""

    def attend_and_evict(
        self,
        slots: SlotTensors,
        counts: StepCounts,
        new: NewTokens,
        sight: Sight,
        ranking: Ranking,
    ) -> Tensor:
        """`attend`, rank by what the kernel's name says, and `evict`: output ``[B, H_q, D]``."""

    def filler(
        self, slots: Sequence[SlotTensors], draws: Sequence[Tensor]
    ) -> Callable[[int, Tensor, Tensor, Tensor, Tensor], None]:
        """What does the work of `fill` for N layers at once, as long as they are where they are.

        It takes the row, keys and values ``[N, H, P, D]``, positions ``[N, H, P]``, and the int64
        scalar that it puts into the row's place of all draws ``[B]``.
        """


def fuses(backend: Backend | FusingBackend) -> TypeGuard[FusingBackend]:
    """Whether it has such kernels; asked at every layer and step, where isinstance is slow."""
    return hasattr(backend, "attend_and_evict")


def has_kernels_for(keys: Tensor) -> bool:
    """Whether the Triton kernels can work on keys ``[..., D]``: on a GPU, with Triton installed."""
    head_dim = keys.shape[-1]
    return (
        keys.is_cuda
        and find_spec("triton") is not None
        and keys.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and head_dim in (16, 32, 64, 128)
    )


def backend_for(keys: Tensor) -> Backend | FusingBackend:
    """What works on keys ``[..., D]``."""
    if has_kernels_for(keys):
        from scope.kernels.triton import backend

        return cast(FusingBackend, backend)
    from scope.kernels import reference

    return cast(Backend, reference)


def argmax(logits: Tensor) -> Tensor:
    """Index of the largest of each row of ``[B, n]``: ``[B]`` int64."""
    if logits.is_cuda and find_spec("triton") is not None:
        from scope.kernels.triton import pointwise

        with torch.cuda.device_of(logits):
            return pointwise.argmax(logits)
    return logits.argmax(dim=-1)


def sample(scores: Tensor, keys: Tensor) -> Tensor:
    """A draw from the softmax of each row of ``[B, n]`` float32: ``[B]`` int64.

    ``keys`` ``[B]`` int64, below 2^32, are all that chance depends on; -inf is never drawn.
    """
    if scores.is_cuda and find_spec("triton") is not None:
        from scope.kernels.triton import pointwise

        with torch.cuda.device_of(scores):
            return pointwise.sample(scores, keys)
    from scope.kernels import reference

    return reference.sample(scores, keys)


def shared_memory(device: torch.device) -> int:
    """Bytes of fast memory that one program can have."""
    if device.type != "cuda":
        return 2**20  # the interpreter knows no limit
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]


def processors(device: torch.device) -> int:
    """Streaming multiprocessors, each of which has such fast memory."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
