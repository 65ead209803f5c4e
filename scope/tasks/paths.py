"""Path traversal: follow one-way roads to a place, and go back the same way.

After LongProc (https://arxiv.org/abs/2501.05414), with its partial score, the length of the right
prefix; the way back is our addition, and it alone is marked. There the prompt does not help:
several roads lead into each place, and which one was taken is said in the generation only. Each
step back stands there once, beside the step out that it undoes.
"""

import re
from itertools import pairwise
from random import Random
from typing import ClassVar

from scope.tasks.made import MadeTask, Problem, marks_of_prefix, numbered_lines, plain
from scope.tasks.task import Exam, Marks
from scope.tasks.words import NOUNS, draw_names

_QUESTION = re.compile(r"[0-9]{1,6}\. back")
_ROAD = re.compile(r"([^-→,]+)(?:-+>|→)([^,]+)")
_UNDONE = re.compile(r"back\[([^\]]+)\] ?= ?(.+)", re.IGNORECASE)
_BACK = re.compile(r"^[^\w\n]{0,8}Back\b", re.MULTILINE | re.IGNORECASE)
_FALSE_ROADS = {"easy": 1, "medium": 2, "hard": 3}  # into each place, beside the right one


class Paths(MadeTask):
    """Every step back is a question: right if all steps back so far undo the model's own way out.

    So a wrong turn on the way out costs nothing but the steps that are missing.
    """

    name = "paths"
    instruction = (
        "Below are one-way roads between places; at most one road leads out of a place. Under the "
        "heading 'Out', follow the roads from the start to the goal, with a numbered line for "
        "every step and for how it is undone, as in '3. fox -> owl, back[owl] = fox'. Then, under "
        "the heading 'Back', undo the steps, the last one first, and go on counting, as in "
        "'8. back[owl] = fox', until you are at the start again. Write nothing else."
    )
    sizes: ClassVar = {30: 100, 60: 200}
    worked = 6

    def draw(self, rng: Random, k: int, level: str) -> Problem:
        false = _FALSE_ROADS[level]
        count = 1 + k * (1 + false)
        places = draw_names(rng, count, 1 if level == "easy" and count <= len(NOUNS) else 2)
        way, others = places[: k + 1], iter(places[k + 1 :])
        right = [f"{here} -> {there}" for here, there in pairwise(way)]
        undone = [f"back[{there}] = {here}" for here, there in pairwise(way)]
        roads = [*right, *(f"{next(others)} -> {place}" for place in way[1:] for _ in range(false))]
        rng.shuffle(roads)
        out, back = [", ".join(step) for step in zip(right, undone, strict=True)], undone[::-1]
        lines = [f"{number}. {step}" for number, step in enumerate([*out, *back], start=1)]
        return Problem(
            "\n".join(roads) + f"\n\nStart: {way[0]}\nGoal: {way[-1]}",
            "\n".join(
                [
                    f"Out from {way[0]} to {way[-1]}",
                    *lines[:k],
                    f"Back from {way[-1]} to {way[0]}",
                    *lines[k:],
                ]
            ),
            [f"{number}. back" for number in range(k + 1, 2 * k + 1)],
            back,
        )

    def asks(self, question: str, answer: str) -> bool:
        return bool(_QUESTION.fullmatch(question) and _UNDONE.fullmatch(answer))

    def mark(self, exam: Exam, pred: str) -> Marks:
        heading = _BACK.search(pred)
        turn = heading.start() if heading else len(pred)
        undone = [f"{there} -> {here}" for here, there in _way_out(pred[:turn])[::-1]]
        said = [f"{here} -> {there}" for here, there in _pairs(_UNDONE, pred[turn:])]
        missing = ["?"] * (len(exam.answers) - len(undone))
        return marks_of_prefix([said], [(undone + missing)[: len(exam.answers)]])


def _pairs(form: re.Pattern[str], text: str) -> list[tuple[str, str]]:
    """The two places in each numbered line, in plain words; lines of another form are left out."""
    found = (form.match(line) for _, line in sorted(numbered_lines(text).items()))
    pairs = [(plain(match[1]), plain(match[2])) for match in found if match]
    return [pair for pair in pairs if all(pair)]


def _way_out(text: str) -> list[tuple[str, str]]:
    """From where to where each step goes.

    A way that is broken, or that comes to a place twice, ends there.
    """
    steps: list[tuple[str, str]] = []
    been: set[str] = set()
    for here, there in _pairs(_ROAD, text):
        if there in been or (steps and steps[-1][1] != here):
            break
        been |= {here, there}
        steps.append((here, there))
    return steps
