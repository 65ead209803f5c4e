"""AIME: two papers a year of 15 problems, answered by a whole number from 0 to 999.

The hub's commits are abbreviated as its pages show them.
"""

from fractions import Fraction

from scope.errors import ScopeError
from scope.tasks.boxed import BoxedTask, value
from scope.tasks.sources import Hub
from scope.tasks.task import Exam


class _AIME(BoxedTask):
    rows = 30

    def check(self, exam: Exam) -> None:
        super().check(exam)
        number = value(exam.answers[0])
        if not isinstance(number, Fraction) or number not in range(1000):
            raise ScopeError(f"the answer {exam.answers[0][:40]!r} is no number from 0 to 999")


class AIME24(_AIME):
    name = "aime24"
    hub = Hub("HuggingFaceH4/aime_2024", None, "train", "2fe88a2")


class AIME25(_AIME):
    name = "aime25"
    hub = Hub("math-ai/aime25", None, "test", "7510e41")
    sha256 = "12467eb9"
