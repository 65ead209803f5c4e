"""Recall of what was generated: values that the model works out once, and needs later.

Each name gets the last value plus a number, so a value stands in no line of the prompt, and
working it out anew would take all additions before it; it must be copied from the generation.
Some names are asked for again and again, the others at most a few times.
"""

import re
from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from scope.tasks.made import MadeTask, Problem, named_value, numbered_lines, plain
from scope.tasks.task import Exam, Marks
from scope.tasks.words import draw_names

_QUESTION = re.compile(r"([0-9]{1,6})\. (.+) = \?")
_ANSWER = re.compile(r".+ = [0-9]{1,12}")
_HUB_SHARE = 0.5


@dataclass(frozen=True)
class _Level:
    """Words in a name, the largest number to be added, names that are asked for often."""

    words: int
    largest: int
    hubs: int


_LEVELS = {"easy": _Level(1, 9, 3), "medium": _Level(2, 9, 3), "hard": _Level(2, 99, 0)}


class Notes(MadeTask):
    """A question is a line that asks again; it is right if it says what the model had said.

    An error in an addition costs nothing: the model's own value is what it must recall. But a value
    that the model has given to two names is none.
    """

    name = "notes"
    instruction = (
        "Carry out the numbered lines below, one after the other, and write one line for each, "
        "beginning with its number. A line such as '7. fox = last + 5' gives a name the value that "
        "was given most recently plus a number: write the addition, as in '7. fox = 40 + 5 = 45'. "
        "A line such as '8. owl = ?' asks for the value that the name was given before: write it, "
        "as in '8. owl = 33'; this does not change which value was given most recently. Leave no "
        "line out and write nothing else."
    )
    sizes: ClassVar = {30: 100, 60: 200}
    worked = 6

    def draw(self, rng: Random, k: int, level: str) -> Problem:
        chosen = _LEVELS[level]
        names = draw_names(rng, k + 3, chosen.words)
        value = rng.randrange(100, 200)
        asked, written = [f"1. {names[0]} = {value}"], [f"1. {names[0]} = {value}"]
        values: dict[str, int] = {}
        questions, answers = [], []
        for name in names[1:]:
            number = len(asked) + 1
            addend = rng.randrange(1, chosen.largest + 1)
            asked.append(f"{number}. {name} = last + {addend}")
            written.append(f"{number}. {name} = {value} + {addend} = {value + addend}")
            value += addend
            values[name] = value
            # Never the value just given: a model would take it that this is what is asked for.
            older = [other for other in values if other != name]
            if len(older) < 2:
                continue
            number += 1
            hubs = [other for other in names[1 : 1 + chosen.hubs] if other in older]
            recalled = rng.choice(hubs if hubs and rng.random() < _HUB_SHARE else older)
            asked.append(f"{number}. {recalled} = ?")
            answers.append(f"{recalled} = {values[recalled]}")
            written.append(f"{number}. {answers[-1]}")
            questions.append(asked[-1])
        return Problem("\n".join(asked), "\n".join(written), questions, answers)

    def asks(self, question: str, answer: str) -> bool:
        return bool(_QUESTION.fullmatch(question) and _ANSWER.fullmatch(answer))

    def mark(self, exam: Exam, pred: str) -> Marks:
        lines = {number: named_value(line) for number, line in numbered_lines(pred).items()}
        asked = [_QUESTION.findall(question)[0] for question in exam.questions]
        recalls = {int(number): plain(name) for number, name in asked}
        given: dict[str, int] = {}
        for number in sorted(lines.keys() - recalls.keys()):
            if (named := lines[number]) is not None:
                given.setdefault(*named)
        times = Counter(given.values())
        answered, correct = [], []
        for number, name in recalls.items():
            said, own = lines.get(number), given.get(name)
            there = said is not None and said[0] == name
            answered.append(there)
            correct.append(there and said[1] == own and times[own] == 1)
        return Marks(tuple(answered), tuple(answered), tuple(correct))
