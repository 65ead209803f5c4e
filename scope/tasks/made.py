"""Tasks that the project makes itself: drawn from a seed, of any length, marked without a judge.

In LongGenBench no answer depends on another, so a cache that forgets the generation loses nothing.
Here each answer needs what the model has written before and the prompt does not say.
"""

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from scope.errors import ScopeError
from scope.tasks.task import Exam, Marks, Task

LEVELS = ("easy", "medium", "hard")
ARROW = re.compile(r"-+>|→")

_LINE = re.compile(r"^[^\w\n]{0,8}([0-9]{1,6})[.):][*]*[ \t]*(.*)", re.MULTILINE)
_NUMBER = re.compile(r"-?[0-9]{1,12}")


@dataclass(frozen=True)
class Problem:
    """What the model is to do, what it should write, and what of that is marked."""

    text: str
    solution: str
    questions: Sequence[str]
    answers: Sequence[str]


class MadeTask(Task):
    """Base of such tasks; `scope.longgenbench.draw` writes files of them.

    Attributes:
        worked: questions in the worked example.
    """

    worked: ClassVar[int]

    @abstractmethod
    def draw(self, rng: Random, k: int, level: str) -> Problem:
        """A problem with k questions.

        Raises:
            ScopeError: k is too large.
        """

    def row(self, k: int, level: str, seed: int, index: int) -> dict[str, object]:
        """A row of a data file: a worked example, and a problem that no other row has."""
        worked = self.draw(Random(f"{self.name} {level}"), self.worked, level)
        problem = self.draw(Random(f"{self.name} {level} {k} {seed} {index}"), k, level)
        return {
            "prompt": f"Example input:\n\n{worked.text}\n\nExample output:\n\n{worked.solution}\n\n"
            f"Input:\n\n{problem.text}\n\nOutput:\n",
            "questions": list(problem.questions),
            "answers": list(problem.answers),
        }

    def check(self, exam: Exam) -> None:
        if len(exam.questions) != len(exam.answers) or not all(
            map(self.asks, exam.questions, exam.answers)
        ):
            raise ScopeError(f"not questions and answers as the data set {self.name} has them")

    @abstractmethod
    def asks(self, question: str, answer: str) -> bool:
        """Whether the two are of this task's form."""


def numbered_lines(text: str) -> dict[int, str]:
    """The text after each line number at the head of a line, where the number is printed first.

    Without Markdown's emphasis.
    """
    lines: dict[int, str] = {}
    for match in _LINE.finditer(text):
        lines.setdefault(int(match[1]), re.sub("[*`_]", "", match[2]).strip())
    return lines


def lines_since(needed: Sequence[str], written: Sequence[Sequence[str]]) -> tuple[int | None, ...]:
    """Of each line, how many lines ago the name that it needs was last written, None for never.

    Args:
        needed: a name a line.
        written: the names that each line writes.
    """
    last: dict[str, int] = {}
    back: list[int | None] = []
    for line, (name, names) in enumerate(zip(needed, written, strict=True)):
        back.append(line - last[name] if name in last else None)
        last.update(dict.fromkeys(names, line))
    return tuple(back)


def named_value(line: str) -> tuple[str, int] | None:
    """``fox = 5 + 7 = 12`` and ``fox: 5 + 7 = 12`` give the name and the last number."""
    name, found, rest = line.partition(":" if ":" in line else "=")
    numbers = _NUMBER.findall(rest.rpartition("=")[2])
    if not found or not numbers:
        return None
    return plain(name), int(numbers[0])


def plain(text: str) -> str:
    """Lower case, words and figures only, one space between them."""
    return " ".join(re.findall(r"[a-z0-9]+", text.casefold()))


def marks_of_prefix(found: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> Marks:
    """Marks each line of several traces: it is right if it and all before it in its trace are.

    Args:
        found: the lines of each trace as they were written; one that cannot be read is empty.
        gold: as they should be.
    """
    answered: list[bool] = []
    correct: list[bool] = []
    for written, expected in zip(found, gold, strict=True):
        right = True
        for place, line in enumerate(expected):
            there = place < len(written) and written[place] != ""
            right = right and there and written[place] == line
            answered.append(there)
            correct.append(right)
    return Marks(tuple(answered), tuple(answered), tuple(correct))
