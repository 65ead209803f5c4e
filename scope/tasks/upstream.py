"""Reads answers as the original's evaluation does, to the last digit.

The original finds answers with one regular expression each (``Answer_\\d+:\\s*.*?answer is (\\d+)``
with DOTALL, and ``Answer_\\d+:\\s*.*?answer is \\((.*?)\\)`` without), whose time grows with the
square of the text's length on looping outputs. The readers below find the same in linear time.
"""

import re

_HEADING = re.compile(r"Answer_\d+:\s*")
_NUMBER = re.compile(r"answer is (\d+)")
_CHOICE = "answer is ("
_GOLD_NUMBER = re.compile(r"####\s*(\d+)")


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


def read_gold_number(answer: str) -> str | None:
    """The digits after ``####``, without sign, separators or decimals."""
    match = _GOLD_NUMBER.search(answer)
    return match[1] if match else None
