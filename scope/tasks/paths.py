"""Path traversal: follow one-way roads to a place, and go back the same way.

After LongProc (https://arxiv.org/abs/2501.05414), with its partial score, the length of the right
prefix; the way back is our addition. There the prompt does not help: several roads lead into each
place, and which one was taken is said in the generation only.
"""

import re
from itertools import pairwise
from random import Random
from typing import ClassVar

from scope.tasks.made import MadeTask, Problem, marks_of_prefix, numbered_lines, plain
from scope.tasks.task import Exam, Marks
from scope.tasks.words import draw_names

_QUESTION = re.compile(r"[0-9]{1,6}\. (out|back)")
_ARROW = re.compile(r"-+>|→")
_FALSE_ROADS = {"easy": 1, "medium": 2, "hard": 3}  # into each place, beside the right one


class Paths(MadeTask):
    """Every step is a question, the ways out and back together; right if all before it are too."""

    name = "paths"
    instruction = (
        "Below are one-way roads between places; at most one road leads out of a place. Follow the "
        "roads from the start to the goal, and then go back the same way, place by place, against "
        "the direction of the roads. Write every step as a numbered line, as in "
        "'3. red fox -> old owl', and go on counting on the way back. Write nothing else."
    )
    sizes: ClassVar = {30: 200, 60: 400}
    worked = 6

    def draw(self, rng: Random, k: int, level: str) -> Problem:
        back = k // 2
        out = k - back
        false = _FALSE_ROADS[level]
        places = draw_names(rng, 1 + out * (1 + false), 2)
        way, others = places[: out + 1], iter(places[out + 1 :])
        roads = [(here, there) for here, there in pairwise(way)]
        steps = [*roads, *((there, here) for here, there in roads[::-1][:back])]
        roads += [(next(others), place) for place in way[1:] for _ in range(false)]
        rng.shuffle(roads)
        text = "\n".join(f"{here} -> {there}" for here, there in roads)
        answers = [f"{here} -> {there}" for here, there in steps]
        return Problem(
            f"{text}\n\nStart: {way[0]}\nGoal: {way[-1]}",
            "\n".join(f"{number}. {step}" for number, step in enumerate(answers, start=1)),
            [f"{n}. {'out' if n <= out else 'back'}" for n in range(1, k + 1)],
            answers,
        )

    def asks(self, question: str, answer: str) -> bool:
        return bool(_QUESTION.fullmatch(question)) and len(_ARROW.split(answer)) == 2

    def mark(self, exam: Exam, pred: str) -> Marks:
        lines = numbered_lines(pred)
        found = [_step(lines.get(number, "")) for number in range(1, len(exam.answers) + 1)]
        return marks_of_prefix([found], [[_step(answer) for answer in exam.answers]])


def _step(line: str) -> str:
    """Its two places, in plain words; empty where there are not two."""
    places = [plain(place) for place in _ARROW.split(line)]
    return " -> ".join(places) if len(places) == 2 and all(places) else ""
