"""Countdown: reach a target from a few numbers, with the whole search written down.

After LongProc (https://arxiv.org/abs/2501.05414), with an order of search, a form and wording of
our own, and its partial score: the length of the right prefix. To go on after a branch that failed
one must look up, in the generation, which numbers were left above it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from random import Random
from typing import ClassVar

from scope.tasks.made import MadeTask, Problem, marks_of_prefix
from scope.tasks.task import Exam, Marks

_QUESTION = re.compile(r"Problem ([0-9]{1,6}): [0-9 ]+, target [0-9]+")
_STEP = re.compile(
    r"^[^\w\n]{0,8}([0-9]{1,9}) ?([-+*]) ?([0-9]{1,9}) ?= ?([0-9]{1,9}),? "
    r"(left [0-9 ]{1,99}|yes|no)",
    re.MULTILINE | re.IGNORECASE,
)
_HEADING = re.compile(r"^[^\w\n]{0,8}Problem[ ]([0-9]{1,6})", re.MULTILINE)
_LARGEST_TARGET = 999


@dataclass(frozen=True)
class _Level:
    """How many numbers, the largest, and how many lines the search may take."""

    numbers: int
    largest: int
    lines: range


_LEVELS = {
    "easy": _Level(3, 9, range(12, 37)),
    "medium": _Level(4, 9, range(10, 26)),
    "hard": _Level(4, 20, range(14, 27)),
}


class Countdown(MadeTask):
    """K problems in one prompt; each line of each search is marked."""

    name = "countdown"
    instruction = (
        "In each problem below, find how to make the target from all of the numbers, and write "
        "down the whole search under the heading 'Problem 1', 'Problem 2' and so on. Take the "
        "pairs of numbers in their order: first and second, first and third, ..., second and "
        "third, ... For each pair try a + b, then the larger minus the smaller, then a * b. "
        "Replace the pair: what is left are the other numbers in their order, and then the result. "
        "As long as several numbers are left, write them, as in '3 + 5 = 8, left 9 8', and go on "
        "with their pairs first; when all of these have failed, go on here with what comes next. "
        "When one number is left, compare it with the target: write '9 + 8 = 17, no' and go on, or "
        "'9 * 8 = 72, yes' and end the problem. Write nothing else."
    )
    sizes: ClassVar = {30: 12, 60: 24}
    worked = 2

    def draw(self, rng: Random, k: int, level: str) -> Problem:
        chosen = _LEVELS[level]
        questions, answers = [], []
        while len(questions) < k:
            numbers = [rng.randrange(1, chosen.largest + 1) for _ in range(chosen.numbers)]
            drawn = _draw_search(rng, numbers, chosen.lines)
            if drawn is not None:
                target, lines = drawn
                shown = " ".join(map(str, numbers))
                questions.append(f"Problem {len(questions) + 1}: {shown}, target {target}")
                answers.append("\n".join(lines))
        solutions = (f"Problem {place}\n{lines}" for place, lines in enumerate(answers, start=1))
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


def _search(numbers: Sequence[int]) -> Iterator[tuple[str, int | None]]:
    """Each step of the search, and the number that it ends in where one is left."""
    for one, other in combinations(range(len(numbers)), 2):
        a, b = numbers[one], numbers[other]
        rest = [number for place, number in enumerate(numbers) if place not in (one, other)]
        for left, sign, right, result in (
            (a, "+", b, a + b),
            (max(a, b), "-", min(a, b), abs(a - b)),
            (a, "*", b, a * b),
        ):
            step = f"{left} {sign} {right} = {result}"
            if not rest:
                yield step, result
                continue
            yield f"{step}, left {' '.join(map(str, [*rest, result]))}", None
            yield from _search([*rest, result])


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
    """The steps in a text, in plain form; what is no step is passed over."""
    plain = text.replace("×", "*").replace("−", "-")
    return [" ".join(" ".join(step).lower().split()) for step in _STEP.findall(plain)]
