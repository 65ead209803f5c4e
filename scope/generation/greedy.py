"""Greedy generation: a queue of prompts, and a batch whose rows take the next one as they end."""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scope.cache.schedule import RowReport, Schedule
from scope.generation.session import Session
from scope.kernels import argmax


@dataclass(frozen=True)
class Generation:
    """What followed one prompt.

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
    done: Collection[int] = (),
) -> Iterator[tuple[int, Generation]]:
    """Generate greedily after every prompt of the session.

    A row that has ended takes the next prompt while the others run on. On a GPU tokens are read in
    blocks of steps: what a row gives beyond its end is dropped.

    Args:
        session: a new session.
        max_new_tokens: most tokens after a prompt.
        eos_token_ids: tokens that end a text.
        min_new_tokens: first tokens that must not be one of them.
        on_tokens: called with the number of tokens that a prompt or a step has given.
        done: indices of prompts to leave out.

    Yields:
        Each prompt's index and `Generation`, as it ends.
    """
    queue = deque(index for index in range(len(session.prompts)) if index not in done)
    running: dict[int, tuple[int, list[int]]] = {}  # row: the prompt's index and its tokens
    choice = torch.zeros(session.batch_size, dtype=torch.int64, device=session.model.device)
    ends = torch.tensor(list(eos_token_ids), dtype=torch.int64, device=choice.device)

    def record(row: int, token: int, counts: Schedule) -> tuple[int, Generation] | None:
        """Note a row's next token; where that is its last, end the row and give what it was."""
        index, tokens = running[row]
        tokens.append(token)
        is_end = token in eos_token_ids
        if not is_end and len(tokens) < max_new_tokens:
            return None
        generation = Generation(tokens, "eos" if is_end else "length", counts.report(row))
        del running[row]
        session.release(row)
        return index, generation

    while True:
        for row in range(session.batch_size):
            while queue and row not in running:
                running[row] = (index := queue.popleft()), []
                logits = session.admit(row, index)
                if min_new_tokens > 0:
                    logits = logits.index_fill(0, ends, -torch.inf)
                # Read at once: the wait is nothing beside the prompt, and the row may end here.
                choice[row] = token = int(logits.argmax())
                on_tokens(1)
                if ended := record(row, token, session.cache.schedule):
                    yield ended
        if not running:
            return

        lengths = {row: len(tokens) for row, (_, tokens) in running.items()}
        steps = min(_steps_per_look(choice), max_new_tokens - max(lengths.values()))
        # How many of the next tokens of each row must not end its text.
        closed = [min_new_tokens - lengths.get(row, min_new_tokens) for row in range(len(choice))]
        closed_rows = torch.tensor(closed, device=choice.device)[:, None]
        unread: list[tuple[Tensor, Schedule]] = []
        for step in range(steps):
            logits = session.step(choice)
            if step < max(closed):
                endless = logits.index_fill(1, ends, -torch.inf)
                logits = torch.where(closed_rows > step, endless, logits)
            choice = argmax(logits)
            unread.append((choice, session.cache.schedule.snapshot()))
        block = torch.stack([tokens for tokens, _ in unread]).tolist()
        for tokens, (_, counts) in zip(block, unread, strict=True):
            on_tokens(len(running))
            for row in list(running):
                if ended := record(row, tokens[row], counts):
                    yield ended


def _steps_per_look(tokens: Tensor) -> int:
    """Reading a token stops a GPU; a CPU would only decode on past the end."""
    return 16 if tokens.is_cuda else 1
