"""Tokens on their way from the device to the host, which goes on meanwhile."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scope.cache.schedule import Schedule
from scope.methods.strategy import Counts


@dataclass
class Text:
    """What has followed one prompt so far.

    Attributes:
        index: the prompt's.
        tokens: those that were read.
        launched: how many there will be when all has been read that was begun.
        ended: whether its last token was read; what comes after it is dropped.
    """

    index: int
    tokens: list[int]
    launched: int = 1
    ended: bool = False


@dataclass(frozen=True)
class Chosen:
    """The tokens that a prompt or a step has given.

    Attributes:
        tokens: ``[B]``, of which some rows mean something.
        counts: the schedule after it.
        texts: whose they are, by row.
        held: ``[B]`` bytes of keys and values that each row's step had to read; None of a prompt.
    """

    tokens: Tensor
    counts: Schedule
    texts: dict[int, Text]
    held: Counts | None = None


class Clock:
    """When the device has come so far: an event in its queue, or now where nothing is queued."""

    def __init__(self, device: torch.device) -> None:
        self._seconds, self._event = 0.0, None
        if device.type == "cuda":
            with torch.cuda.device(device):
                self._event = torch.cuda.Event(enable_timing=True)
                self._event.record()
        else:
            self._seconds = time.perf_counter()

    def wait(self) -> None:
        """Until the device has come so far."""
        if self._event is not None:
            self._event.synchronize()

    def since(self, other: "Clock") -> float:
        """Seconds; both must have been waited for."""
        if self._event is None or other._event is None:
            return self._seconds - other._seconds
        return other._event.elapsed_time(self._event) / 1e3


class Look:
    """A look at what was chosen: begun at once, and read when the device has come so far.

    Attributes:
        kind: what it was spent on.
        clock: when the device has done it.
    """

    def __init__(self, kind: Literal["prompts", "steps"], chosen: Sequence[Chosen]) -> None:
        self.kind, self._chosen = kind, chosen
        tokens = torch.stack([one.tokens for one in chosen])
        self._tokens = tokens
        if tokens.is_cuda:
            self._tokens = torch.empty_like(tokens, device="cpu", pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
        self.clock = Clock(tokens.device)

    def read(self) -> Iterator[tuple[list[int], Chosen]]:
        """The tokens of every row, and what was noted with them."""
        self.clock.wait()
        yield from zip(self._tokens.tolist(), self._chosen, strict=True)
