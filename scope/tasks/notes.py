"""Recall of what was generated: each name takes over an older one's number, which is written down.

The prompt tells numbers of the first names only, and of every other name from which one it has its
own. To find a number there one must follow a name back over several lines; in the generation it
stands beside the name. Nothing is worked out, and nothing is ever replaced.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from scope.tasks.made import (
    ARROW,
    MadeTask,
    Problem,
    lines_since,
    named_value,
    numbered_lines,
    plain,
)
from scope.tasks.task import Exam, Marks
from scope.tasks.words import draw_names

_QUESTION = re.compile(r"([0-9]{1,6})\. (.+) -> (.+)")
_ANSWER = re.compile(r".+: [0-9]{3}")


@dataclass(frozen=True)
class _Level:
    """How many numbers there are, and words in a name."""

    numbers: int
    words: int


_LEVELS = {"easy": _Level(6, 1), "medium": _Level(12, 2), "hard": _Level(24, 2)}


class Notes(MadeTask):
    """A question is a line that hands on a number; it is right if it hands on the true one.

    After a slip the model's own number does not count: else one number for all names would do. That
    one is worth one question in ``numbers``.
    """

    name = "notes"
    instruction = (
        "Every name has a number, and the first line below tells the first ones. In a line such as "
        "'9. fox -> owl' the name owl gets the number that fox has. Write all numbered lines "
        "again, in their order, with the number behind each name: where fox has 472, write "
        "'9. fox: 472 -> owl: 472'. A name never changes its number. Leave no line out and write "
        "nothing else."
    )
    sizes: ClassVar = {30: 100, 60: 200}
    worked = 10

    def draw(self, rng: Random, k: int, level: str) -> Problem:
        chosen = _LEVELS[level]
        count = min(chosen.numbers, max(2, k // 2))
        names = draw_names(rng, 2 * count + k, chosen.words)
        numbers = rng.sample(range(100, 1000), count)
        start = dict(zip(numbers, names, strict=False))
        holders: dict[int, list[str]] = {number: [] for number in numbers}
        asked, written, answers = [], [], []
        # The numbers at the start stand in the prompt: each is taken from there once, unmarked.
        handed = [*rng.sample(numbers, count), *rng.choices(numbers, k=k)]
        for line, (name, number) in enumerate(zip(names[count:], handed, strict=True), start=1):
            old = rng.choice(holders[number] or [start[number]])
            holders[number].append(name)
            asked.append(f"{line}. {old} -> {name}")
            written.append(f"{line}. {old}: {number} -> {name}: {number}")
            answers.append(f"{name}: {number}")
        told = ", ".join(f"{name}: {number}" for number, name in start.items())
        return Problem(
            "\n".join([f"Start: {told}", *asked]),
            "\n".join(written),
            asked[count:],
            answers[count:],
        )

    def asks(self, question: str, answer: str) -> bool:
        return bool(_QUESTION.fullmatch(question) and _ANSWER.fullmatch(answer))

    def lines_back(self, exam: Exam) -> Sequence[int | None]:
        """Of a name that a line before the questions was the last to write, too, it is None."""
        names = [_QUESTION.findall(question)[0][1:] for question in exam.questions]
        return lines_since([old for old, _ in names], names)

    def mark(self, exam: Exam, pred: str) -> Marks:
        lines = numbered_lines(pred)
        answered, correct = [], []
        for question, answer in zip(exam.questions, exam.answers, strict=True):
            number, _, name = _QUESTION.findall(question)[0]
            said = named_value(ARROW.split(lines.get(int(number), ""))[-1])
            answered.append(said is not None and said[0] == plain(name))
            correct.append(said == named_value(answer))
        return Marks(tuple(answered), tuple(answered), tuple(correct))
