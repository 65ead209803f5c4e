"""Countdown: reach a target from a few numbers, with the whole search written down.

After LongProc (https://arxiv.org/abs/2501.05414), with an order of search, a form and wording of
our own, and its partial score: the length of the right prefix. To go on after a branch that failed
one must look up, in the generation, which numbers were there above it and what was tried last.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from random import Random
from typing import ClassVar

from scope.tasks.made import MadeTask, Problem, marks_of_prefix
from scope.tasks.task import Exam, Marks

_QUESTION = re.compile(r"Problem ([0-9]{1,6}): \[[0-9, ]+\], target [0-9]+")
_NUMBER, _NUMBERS = "-?[0-9]{1,9}", r"\[[-0-9, ]{1,99}\]"
_STEP = re.compile(
    rf"^[^\w\n\[]{{0,8}}({_NUMBERS}: ?{_NUMBER} ?[-+*] ?{_NUMBER} ?= ?{_NUMBER}, ?"
    rf"(?:left {_NUMBERS}|(?:yes|no)\b))",
    re.MULTILINE,
)
_HEADING = re.compile(r"^[^\w\n]{0,8}Problem[ ]([0-9]{1,6})", re.MULTILINE | re.IGNORECASE)
_LARGEST_TARGET = 999


@dataclass(frozen=True)
class _Level:
    """How many numbers, the largest, and how many lines the search may take."""

    numbers: int
    largest: int
    lines: range


_LEVELS = {
    "easy": _Level(3, 9, range(5, 25)),
    "medium": _Level(4, 9, range(10, 26)),
    "hard": _Level(4, 20, range(14, 27)),
}


class Countdown(MadeTask):
    """K problems in one prompt; each line of each search is marked."""

    name = "countdown"
    instruction = (
        "In each problem below, find how to make the target from all of the numbers, and write "
        "down the whole search under the problem. Take the pairs of numbers in their order: first "
        "and second, first and third, ..., second and third, ... For each pair a and b try a + b, "
        "then a - b, then a * b. Begin each line with the numbers that are there, and end it with "
        "those that are left, the result first: '[9, 5, 3]: 9 - 5 = 4, left [4, 3]'. Go on with "
        "these first. When one number is left, compare it with the target: write "
        "'  [4, 3]: 4 + 3 = 7, no' and go on, or '  [4, 3]: 4 * 3 = 12, yes', which ends the "
        "problem. When all of this has failed, go back to the numbers before and go on there with "
        "what comes next. Write nothing else."
    )
    sizes: ClassVar = {30: 6, 60: 12}
    worked = 2

    def draw(self, rng: Random, k: int, level: str) -> Problem:
        chosen = _LEVELS[level]
        questions, answers = [], []
        while len(questions) < k:
            numbers = sorted(
                (rng.randrange(1, chosen.largest + 1) for _ in range(chosen.numbers)), reverse=True
            )
            drawn = _draw_search(rng, numbers, chosen.lines)
            if drawn is not None:
                target, lines = drawn
                questions.append(f"Problem {len(questions) + 1}: {numbers}, target {target}")
                answers.append("\n".join(lines))
        solutions = map("\n".join, zip(questions, answers, strict=True))
        return Problem("\n".join(questions), "\n\n".join(solutions), questions, answers)

    def asks(self, question: str, answer: str) -> bool:
        return bool(_QUESTION.fullmatch(question)) and len(_trace(answer)) > 0

    def mark(self, exam: Exam, pred: str) -> Marks:
        found: dict[int, list[str]] = {}
        for heading, following in pairwise([*_HEADING.finditer(pred), None]):
            piece = pred[heading.end() : following.start() if following else None]
            found.setdefault(int(heading[1]), _trace(piece))
        return marks_of_prefix(
            [found.get(place, []) for place in range(1, len(exam.answers) + 1)],
            [_trace(answer) for answer in exam.answers],
        )


def _search(numbers: Sequence[int], indent: str = "") -> Iterator[tuple[str, int | None]]:
    """Each step of the search, and the number that it ends in where one is left."""
    for one, other in combinations(range(len(numbers)), 2):
        a, b = numbers[one], numbers[other]
        others = [number for place, number in enumerate(numbers) if place not in (one, other)]
        for sign, result in (("+", a + b), ("-", a - b), ("*", a * b)):
            step = f"{indent}{[*numbers]}: {a} {sign} {b} = {result}"
            if not others:
                yield step, result
                continue
            left = [result, *others]
            yield f"{step}, left {left}", None
            yield from _search(left, indent + "  ")


def _draw_search(
    rng: Random, numbers: Sequence[int], lengths: range
) -> tuple[int, list[str]] | None:
    """A target that is found for the first time after so many lines, and the lines."""
    ends: dict[int, int] = {}  # by target, the place at which it is found
    lines: list[str] = []
    for line, number in _search(numbers):
        if number is not None and number <= _LARGEST_TARGET:
            ends.setdefault(number, len(lines))
        lines.append(line if number is None else f"{line}, no")
        if len(lines) == lengths.stop:
            break
    targets = [target for target, end in ends.items() if end + 1 in lengths and target > 0]
    if not targets:
        return None
    target = rng.choice(targets)
    end = ends[target]
    return target, [*lines[:end], lines[end].removesuffix("no") + "yes"]


def _trace(text: str) -> list[str]:
    """The steps in a text, without spaces; what is no step is passed over."""
    plain = text.replace("**", "").replace("×", "*").replace("−", "-").lower()
    return ["".join(step.split()) for step in _STEP.findall(plain)]
