"""Greedy generation of a batch."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from scope.cache.schedule import RowReport
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
    for length in range(1, max_new_tokens + 1):
        if length <= min_new_tokens:
            ends = torch.tensor(list(eos_token_ids), dtype=torch.int64, device=logits.device)
            logits = logits.index_fill(1, ends, -torch.inf)
        choice = logits.argmax(dim=-1)
        on_tokens(len(running))
        tokens = choice.tolist()
        for row in list(running):
            running[row].append(tokens[row])
            ended = tokens[row] in eos_token_ids
            if ended or length == max_new_tokens:
                report = session.cache.schedule.report(row)
                yield row, Generation(running.pop(row), "eos" if ended else "length", report)
        if not running:
            return
        logits = session.step(choice)
