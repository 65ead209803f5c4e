"""Greedy generation of a batch."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scope.cache.schedule import RowReport, Schedule
from scope.generation.session import Session


@dataclass(frozen=True)
class Generation:
    """What one row generated.

    Attributes:
        tokens: new token ids, the end-of-text token included.
        stopped: ``eos`` at an end-of-text token, ``length`` at the limit.
        cache: what its cache held and lost until then.
    """

    tokens: list[int]
    stopped: Literal["eos", "length"]
    cache: RowReport


def generate(
    session: Session,
    max_new_tokens: int,
    eos_token_ids: Collection[int],
    min_new_tokens: int = 0,
    on_tokens: Callable[[int], object] = lambda count: None,
) -> Iterator[tuple[int, Generation]]:
    """Generate greedily until every row has ended.

    A row that has ended is fed on with the others, and what it gives is dropped.

    Args:
        session: a new session.
        max_new_tokens: most tokens of a row.
        eos_token_ids: tokens that end a row.
        min_new_tokens: first tokens that must not be one of them.
        on_tokens: called after each step with the number of tokens that it added.

    Yields:
        Each row's number and `Generation`, as it ends.
    """
    running: dict[int, list[int]] = {row: [] for row in range(len(session.prompts))}
    logits = session.prefill()
    ends = torch.tensor(list(eos_token_ids), dtype=torch.int64, device=logits.device)
    unread: list[tuple[Tensor, Schedule]] = []
    for length in range(1, max_new_tokens + 1):
        if length <= min_new_tokens:
            logits = logits.index_fill(1, ends, -torch.inf)
        choice = logits.argmax(dim=-1)
        unread.append((choice, session.cache.schedule.snapshot()))
        if length % _steps_per_look(choice) == 0 or length == max_new_tokens:
            choices = torch.stack([tokens for tokens, _ in unread]).tolist()
            for tokens, (_, counts) in zip(choices, unread, strict=True):
                on_tokens(len(running))
                for row in list(running):
                    running[row].append(tokens[row])
                    ended = tokens[row] in eos_token_ids
                    if ended or len(running[row]) == max_new_tokens:
                        stopped = "eos" if ended else "length"
                        yield row, Generation(running.pop(row), stopped, counts.report(row))
            unread.clear()
        if not running:
            return
        logits = session.step(choice)


def _steps_per_look(tokens: Tensor) -> int:
    """Reading a token stops a GPU; a CPU would only decode on past the end."""
    return 16 if tokens.is_cuda else 1
