"""Generation: a queue of prompts, and a batch whose rows take the next one as they end."""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scope.cache.schedule import RowReport
from scope.generation.look import Chosen, Clock, Look, Text
from scope.generation.sampling import Sampler, choose
from scope.generation.session import Session


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
    on_tokens: Callable[[list[int]], object] = lambda given: None,
    done: Collection[int] = (),
    sampler: Sampler | None = None,
) -> Iterator[tuple[int, Generation]]:
    """Generate after every prompt of the session: greedily, or as a sampler draws.

    A row that has ended takes the next prompt while the others run on. A GPU is never waited for:
    while it reads a prompt or does a few steps, the tokens of what came before are looked at, and
    whoever takes what is yielded has that time too. What a row gives beyond its end is dropped.

    Args:
        session: a new session.
        max_new_tokens: most tokens after a prompt.
        eos_token_ids: tokens that end a text.
        min_new_tokens: first tokens that must not be one of them.
        on_tokens: called with the indices of the prompts that a step has given a token each.
        done: indices of prompts to leave out.
        sampler: what draws the tokens; None takes the likeliest.

    Yields:
        Each prompt's index and `Generation`, as it ends.
    """
    device, batch_size = session.model.device, session.batch_size
    queue = deque(index for index in range(len(session.prompts)) if index not in done)
    running: dict[int, Text] = {}  # by row
    unread: deque[Look] = deque()
    ends = torch.tensor(list(eos_token_ids), dtype=torch.int64, device=device)
    # By row: the last token, how many there are, and what the noise of its text depends on.
    choice, places, numbers = torch.zeros(3, batch_size, dtype=torch.int64, device=device)
    work, last_clock = session.work, Clock(device)

    def chosen(logits: Tensor, rows: slice, closed: bool) -> Tensor:
        """The next tokens of some rows; where closed, texts that are too short must not end."""
        if closed:
            endless = logits.index_fill(1, ends, -torch.inf)
            logits = torch.where(places[rows, None] < min_new_tokens, endless, logits)
        return choose(sampler, logits, numbers[rows], places[rows])

    def admit(row: int, index: int) -> Look:
        text = running[row] = Text(index, [])
        logits = session.admit(row, index)
        own = slice(row, row + 1)
        numbers[own] = sampler.numbers[index] if sampler else 0
        places[own] = 0
        choice[own] = chosen(logits[None], own, closed=min_new_tokens > 0)
        places[own] = 1
        return Look("prompts", [Chosen(choice, session.cache.schedule.snapshot(), {row: text})])

    def step(count: int) -> Look:
        nonlocal choice
        given = []
        for _ in range(count):
            shortest = min(text.launched for text in running.values())
            logits = session.step(choice)
            choice = chosen(logits, slice(None), closed=shortest < min_new_tokens)
            places.add_(1)
            for text in running.values():
                text.launched += 1
            counts, held = session.cache.schedule.snapshot(), session.cache.held_bytes()
            given.append(Chosen(choice, counts, dict(running), held))
        return Look("steps", given)

    def end(row: int, text: Text) -> None:
        if running.get(row) is text:
            del running[row]
            session.release(row)

    def read(look: Look) -> Iterator[tuple[int, Generation]]:
        nonlocal last_clock
        for tokens, one in look.read():
            live = {row: text for row, text in one.texts.items() if not text.ended}
            on_tokens([text.index for text in live.values()])
            if one.held is not None:
                work.count_step(one.held[list(live)], batch_size)
            for row, text in live.items():
                text.tokens.append(token := tokens[row])
                is_end = token in eos_token_ids
                if is_end or len(text.tokens) == max_new_tokens:
                    text.ended = True
                    end(row, text)
                    reason: Literal["eos", "length"] = "eos" if is_end else "length"
                    yield text.index, Generation(text.tokens, reason, one.counts.report(row))
        work.seconds[look.kind] += look.clock.since(last_clock)
        last_clock = look.clock

    def begun(look: Look) -> Iterator[tuple[int, Generation]]:
        """Read what need not wait, now that this is on its way."""
        for row, text in list(running.items()):
            if text.launched == max_new_tokens:
                end(row, text)
        unread.append(look)
        while len(unread) > _looks_ahead(device):
            yield from read(unread.popleft())

    while queue or running or unread:
        for row in range(batch_size):
            while queue and row not in running:
                yield from begun(admit(row, queue.popleft()))
        if running:
            room = max_new_tokens - max(text.launched for text in running.values())
            yield from begun(step(min(_steps_per_look(device), room)))
        elif unread:
            yield from read(unread.popleft())


def _steps_per_look(device: torch.device) -> int:
    """Looking costs a launch and some of the host's time; a CPU would only decode past the end."""
    return 8 if device.type == "cuda" else 1


def _looks_ahead(device: torch.device) -> int:
    """How many looks a device may be ahead of the host; a CPU is never."""
    return 1 if device.type == "cuda" else 0
