r"""Problems with a worked-out answer in ``\boxed{}``, one problem a prompt.

The last box counts. Two answers are the same if they are the same number, or the same text after
LaTeX's spacing, sizes, units and the like are taken out; no algebra is done, so ``2(x+1)`` is not
``2x+2``. Everything here is linear in the text and never raises.
"""

import re
from fractions import Fraction
from typing import ClassVar

from scope.errors import ScopeError
from scope.tasks.answers import hint_at_number
from scope.tasks.sources import Hub, Item, Row
from scope.tasks.task import Exam, Marks, Task

_BOX = "\\boxed{"
_TRIES = 50  # boxes that are not closed, from the end
_LONGEST = 1000

_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*)\}")
_NOISE = re.compile(
    r"\\(?:left|right|displaystyle|[!,;: ])|\\?[$%]|\^\{?\\circ\}?|\\degree|[\s.]+$|~"
)
_SHORT_FRACTION = re.compile(r"\\frac([0-9])([0-9])(?![0-9])")
_NAMED = re.compile(r"[a-zA-Z]=")
_THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_NUMBER = re.compile(r"([-+]?)([0-9]{0,40})(?:\.([0-9]{0,40}))?(?:/([0-9]{1,40}))?")
_FRACTION = re.compile(r"([-+]?)\\frac\{([0-9]{1,40})\}\{([0-9]{1,40})\}")


class BoxedTask(Task):
    """Base of such data sets; `scope.longgenbench.problems` builds files of them.

    Attributes:
        hub: where they are had.
        rows: how many there are.
        sha256: of the file in that commit.
    """

    hub: ClassVar[Hub]
    rows: ClassVar[int]
    sha256: ClassVar[str]
    instruction = (
        "Solve the following problem. Reason step by step, and write the final answer in \\boxed{}."
    )

    def item(self, row: Row) -> Item:
        """One row of the source.

        Raises:
            KeyError: it is of another form.
        """
        problem = row["problem"] if "problem" in row else row["question"]
        return Item(str(problem), str(row["answer"]))

    def check(self, exam: Exam) -> None:
        if len(exam.answers) != 1 or not plain_answer(exam.answers[0]):
            raise ScopeError(f"one answer was expected, as the data set {self.name} has them")

    def mark(self, exam: Exam, pred: str) -> Marks:
        said = last_box(pred)
        correct = said is not None and value(said) == value(exam.answers[0])
        return Marks((said is not None,), (said is not None,), (correct,))

    def mark_leniently(self, exam: Exam, pred: str) -> Marks:
        """Where there is no box, the last number counts."""
        if last_box(pred) is not None:
            return self.mark(exam, pred)
        number = hint_at_number(pred[-_LONGEST:])
        there = number is not None
        return Marks((there,), (False,), (there and number == value(exam.answers[0]),))

    def max_new_tokens(self, k: int, upstream: bool) -> int:
        """Reasoning models need 3,000 tokens a problem of MATH on average, and 10,000 of AIME."""
        return 16_384


def last_box(text: str) -> str | None:
    """What stands in the last box that is closed."""
    end = len(text)
    for _ in range(_TRIES):
        start = text.rfind(_BOX, 0, end)
        if start < 0:
            return None
        depth = 1
        inside = text[start + len(_BOX) : start + len(_BOX) + _LONGEST]
        for place, letter in enumerate(inside):
            depth += (letter == "{") - (letter == "}")
            if depth == 0:
                return inside[:place]
        end = start
    return None


def value(answer: str) -> Fraction | str:
    """What an answer says: a number, or else its plain text."""
    plain = plain_answer(answer)
    if fraction := _FRACTION.fullmatch(plain):
        sign, whole, below = fraction.groups()
        decimals = ""
    elif (number := _NUMBER.fullmatch(plain)) and (number[2] or number[3]):
        sign, whole, decimals, below = (group or "" for group in number.groups())
    else:
        return plain
    below = int(below or 1)
    return Fraction(f"{sign}{whole or 0}.{decimals or 0}") / below if below else plain


def plain_answer(answer: str) -> str:
    """Without what does not change its meaning."""
    plain = answer[:_LONGEST].translate({0x2212: "-"})
    plain = _NOISE.sub("", _WRAPPER.sub(r"\1", plain))
    plain = plain.replace("dfrac", "frac").replace("tfrac", "frac").replace(" ", "")
    plain = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", plain)
    if _NAMED.match(plain):
        plain = plain[2:]
    return plain.replace(",", "") if _THOUSANDS.fullmatch(plain) else plain
