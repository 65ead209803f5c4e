"""AIME: two papers a year of 15 problems, answered by a whole number from 0 to 999."""

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
    hub = Hub("HuggingFaceH4/aime_2024", None, "train", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a")
    sha256 = "26139847601a5037c237d5928b195e7260ca8074cf4f264b794af42847f79ccf"


class AIME25(_AIME):
    name = "aime25"
    hub = Hub("math-ai/aime25", None, "test", "563bb8404243c5f09de6ec262f2db674fe5bce9b")
    sha256 = "b4e273c02d3e7fe1b74b59eae768fc8230bfb0f79539890cb56f4361caac0331"
