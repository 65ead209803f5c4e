"""A depth-first walk, of which every step is told, and the model keeps track of where it is.

After TriAttention's state queries (https://arxiv.org/abs/2604.04921), with a form and wording of
our own. To go back from a place one must look up, in the generation, from where one first came to
it: a few lines ago, or as many as the walk has taken beyond that place.
"""

import re
from random import Random
from typing import ClassVar

from scope.tasks.made import MadeTask, Problem, numbered_lines, plain
from scope.tasks.task import Exam, Marks
from scope.tasks.words import draw_names

_QUESTION = re.compile(r"[0-9]{1,6}\. \?: back to \?")
_MOVE = re.compile(r"(.+): (go|back) to (.+)")
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
        "in their order, with the names of places instead of the question marks: first where the "
        "walker stands, then where the step leads, as in '3. owl: go to bee' and "
        "'4. bee: back to owl'. Leave no line out and write nothing else."
    )
    sizes: ClassVar = {30: 100, 60: 200}
    worked = 4

    def draw(self, rng: Random, k: int, level: str) -> Problem:
        start, *unseen = draw_names(rng, k + 1, 1)
        path, asked, written, questions, answers = [start], [], [], [], []
        while unseen or len(path) > 1:
            number, here = len(asked) + 1, path[-1]
            if unseen and (len(path) == 1 or rng.random() < _DEEPER[level]):
                path.append(unseen.pop())
                asked.append(f"{number}. ?: go to {path[-1]}")
                written.append(f"{number}. {here}: go to {path[-1]}")
                continue
            path.pop()
            asked.append(f"{number}. ?: back to ?")
            written.append(f"{number}. {here}: back to {path[-1]}")
            questions.append(asked[-1])
            answers.append(path[-1])
        text = f"Start: {start}\n" + "\n".join(asked)
        return Problem(text, "\n".join(written), questions, answers)

    def asks(self, question: str, answer: str) -> bool:
        return bool(_QUESTION.fullmatch(question)) and answer == plain(answer) != ""

    def mark(self, exam: Exam, pred: str) -> Marks:
        gold = {
            int(question.partition(".")[0]): answer
            for question, answer in zip(exam.questions, exam.answers, strict=True)
        }
        said = {number: _moved(line) for number, line in numbered_lines(pred).items()}
        came_from: dict[str, str] = {}
        marks: dict[int, tuple[bool, bool]] = {}
        for number in sorted(said.keys() | gold):
            here, way, there = said.get(number) or ("", "", "")
            before = said.get(number - 1)
            follows = before is None or before[2] == here
            if number in gold:
                own = came_from.get(here) if follows else None
                marks[number] = way == "back", way == "back" and there in (gold[number], own)
            elif way == "go" and follows:
                came_from.setdefault(there, here)
        answered, correct = zip(*(marks[number] for number in gold), strict=True)
        return Marks(answered, answered, correct)


def _moved(line: str) -> tuple[str, str, str] | None:
    """Where from, how and whither, in plain words."""
    found = _MOVE.match(re.sub("[*`_]", "", line).casefold())
    return found and (plain(found[1]), found[2], plain(found[3]))
