"""How far a run is: a bar on a terminal, and lines where the output goes to a file."""

import contextlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30


def progress(description: str, total: int, initial: int = 0) -> tqdm:
    """A bar over prompts; away from a terminal a line at the start, now and then, and at the end.

    Args:
        description: what is run.
        total: prompts in all.
        initial: prompts that are done already.
    """
    common: dict[str, Any] = {
        "desc": description,
        "total": total,
        "initial": initial,
        "unit": "prompt",
    }
    if sys.stderr.isatty():
        return tqdm(**common)
    return tqdm(
        **common,
        file=_Lines(sys.stderr),
        mininterval=_SECONDS_BETWEEN_LINES,
        maxinterval=_SECONDS_BETWEEN_LINES,
        miniters=0,
        bar_format="{desc}: {n_fmt} of {total_fmt} prompts [{elapsed}<{remaining}{postfix}]",
    )


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep the bars of other programs out of an output that is not a terminal."""
    if sys.stderr.isatty():
        yield
        return
    with contextlib.redirect_stderr(_NoBars(sys.stderr)):
        yield


class _Lines(io.TextIOBase):
    """Turns what would overwrite a line of a terminal into lines."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def write(self, text: str) -> int:
        if line := text.strip():
            self.file.write(line + "\n")
        return len(text)

    def flush(self) -> None:
        self.file.flush()


class _NoBars(_Lines):
    """Drops what would overwrite a line of a terminal, and the line end after it."""

    after_bar = False

    def write(self, text: str) -> int:
        is_bar = text.startswith("\r") or (self.after_bar and text == "\n")
        self.after_bar = text.startswith("\r")
        if not is_bar:
            self.file.write(text)
        return len(text)
