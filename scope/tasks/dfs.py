"""A depth-first walk, of which every step is told, and the model keeps track of where it is.

After TriAttention's state queries (https://arxiv.org/abs/2604.04921), with a form and wording of
our own. To go back from a place one must look up, in the generation, from where one first came to
it: a few lines ago, or as many as the walk has taken beyond that place.
"""

import re
from collections.abc import Sequence
from random import Random
from typing import ClassVar

from scope.tasks.made import MadeTask, Problem, numbered_lines, plain
from scope.tasks.task import Exam, Marks
from scope.tasks.words import draw_names

_QUESTION = re.compile(r"[0-9]{1,6}\. back")
_MOVE = re.compile(r"(go|back): ([^<←,]+)(?:<-+|←)([^,]+), now at (.+)")
# How often the walk goes on where it could also go back.
_DEEPER = {"easy": 0.5, "medium": 0.6, "hard": 0.75}


class DepthFirst(MadeTask):
    """A question is a step back; it is right if it says whither, in truth or by the model's words.

    After a slip, the places that the model itself says it came from count as well.
    """

    name = "dfs"
    instruction = (
        "Someone walks through a maze. Each numbered line below is a step: to a place that is new, "
        "or back to the place from which the present one was first reached. Write all steps again, "
        "in their order. For a new place write from where it is reached, as in "
        "'3. go: bee <- owl, now at bee'. For a step back write the present place again, from "
        "where it was reached, and that the walker is there now, as in "
        "'4. back: bee <- owl, now at owl'. Leave no line out and write nothing else."
    )
    sizes: ClassVar = {30: 100, 60: 200}
    worked = 8

    def draw(self, rng: Random, k: int, level: str) -> Problem:
        start, *unseen = draw_names(rng, k + 1, 1)
        path, asked, written, questions, answers = [start], [], [], [], []
        while unseen or len(path) > 1:
            number, here = len(asked) + 1, path[-1]
            if unseen and (len(path) == 1 or rng.random() < _DEEPER[level]):
                path.append(unseen.pop())
                asked.append(f"{number}. go: {path[-1]}")
                written.append(f"{number}. go: {path[-1]} <- {here}, now at {path[-1]}")
                continue
            path.pop()
            asked.append(f"{number}. back")
            written.append(f"{number}. back: {here} <- {path[-1]}, now at {path[-1]}")
            questions.append(asked[-1])
            answers.append(path[-1])
        head = f"Start: now at {start}"
        return Problem("\n".join([head, *asked]), "\n".join([head, *written]), questions, answers)

    def asks(self, question: str, answer: str) -> bool:
        return bool(_QUESTION.fullmatch(question)) and answer == plain(answer) != ""

    def lines_back(self, exam: Exam) -> Sequence[int | None]:
        """To the line that first came to the place in question."""
        backs = [int(question.partition(".")[0]) for question in exam.questions]
        found, path = [], list[int]()  # lines that first came to the places on the way here
        for line in range(1, backs[-1] + 1):
            if line in backs:
                found.append(line - path.pop())
            else:
                path.append(line)
        return found

    def mark(self, exam: Exam, pred: str) -> Marks:
        gold = {
            int(question.partition(".")[0]): answer
            for question, answer in zip(exam.questions, exam.answers, strict=True)
        }
        said = {number: _moved(line) for number, line in numbered_lines(pred).items()}
        came_from: dict[str, str] = {}
        marks: dict[int, tuple[bool, bool]] = {}
        for number in sorted(said.keys() | gold):
            way, place, origin, now = said.get(number) or ("", "", "", "")
            before = said.get(number - 1)
            stood = before and before[3]  # where the line before has left the walker
            if number in gold:
                own = came_from.get(place) if stood in (None, place) else None
                marks[number] = way == "back", way == "back" and now in (gold[number], own)
            elif way == "go" and stood in (None, origin):
                came_from.setdefault(place, origin)
        answered, correct = zip(*(marks[number] for number in gold), strict=True)
        return Marks(answered, answered, correct)


def _moved(line: str) -> tuple[str, str, str, str] | None:
    """Go or back, the place, from where it was reached, and where the walker is then."""
    found = _MOVE.match(line.casefold())
    return found and (found[1], plain(found[2]), plain(found[3]), plain(found[4]))
