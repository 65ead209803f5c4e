"""The score of the original's evaluation, to the last digit.

It reads the answers in the order in which they were printed and compares the i-th of them with the
i-th gold answer, so one answer that is skipped or cannot be read moves all later ones out of place.
It is here to compare with published figures; ``indexed`` is the fair score.

The original finds answers with one regular expression each (``Answer_\\d+:\\s*.*?answer is (\\d+)``
with DOTALL, and ``Answer_\\d+:\\s*.*?answer is \\((.*?)\\)`` without), whose time grows with the
square of the text's length on looping outputs. The readers below find the same in linear time.
"""

import re
from collections.abc import Sequence

from scope.evaluation.results import Record

_HEADING = re.compile(r"Answer_\d+:\s*")
_NUMBER = re.compile(r"answer is (\d+)")
_CHOICE = "answer is ("
_GOLD_NUMBER = re.compile(r"####\s*(\d+)")


def score(records: Sequence[Record]) -> float:
    """Mean accuracy over prompts in percent, rounded as the original does."""
    return round(100 * sum(map(accuracy, records)) / len(records), 4)


def accuracy(record: Record) -> float:
    """Share of the record's gold answers that the answer in the same place equals."""
    if "####" in record.answers[0]:
        gold: list[str | None] = [_gold_number(answer) for answer in record.answers]
        found = read_numbers(record.pred)
    else:
        gold = list(record.answers)
        found = read_choices(record.pred)
    return sum(a == b for a, b in zip(gold, found, strict=False)) / len(gold)


def read_numbers(text: str) -> list[str]:
    """After each heading the next ``answer is <digits>``, even if later headings lie between."""
    found = []
    position = 0
    while (heading := _HEADING.search(text, position)) and (
        number := _NUMBER.search(text, heading.end())
    ):
        found.append(number[1])
        position = number.end()
    return found


def read_choices(text: str) -> list[str]:
    """After each heading the next ``answer is (...)`` on the line where its text begins."""
    found = []
    position = 0  # headings before it are part of the previous answer
    line_end = -1
    exhausted = False  # the current line holds no further answer
    for heading in _HEADING.finditer(text):
        if heading.start() < position:
            continue
        start = heading.end()
        if start > line_end:
            line_end = text.find("\n", start)
            line_end = len(text) if line_end < 0 else line_end
            exhausted = False
        if exhausted:
            continue
        opening = text.find(_CHOICE, start, line_end)
        closing = text.find(")", opening, line_end) if opening >= 0 else -1
        if closing < 0:
            exhausted = True
            continue
        found.append(text[opening + len(_CHOICE) : closing])
        position = closing + 1
    return found


def _gold_number(answer: str) -> str | None:
    match = _GOLD_NUMBER.search(answer)
    return match[1] if match else None
