"""The project's synthetic recall task; `scope.recall.task` says what it asks."""

from scope.errors import ScopeError
from scope.recall import scoring
from scope.tasks.task import Exam, Marks, Task


class Recall(Task):
    """The prompt is all that the model gets: it was trained without an instruction."""

    name = "recall"

    def check(self, exam: Exam) -> None:
        if not all(map(scoring.is_answer, exam.answers)):
            raise ScopeError("not answers as the data set recall has them")

    def mark(self, exam: Exam, pred: str) -> Marks:
        correct = tuple(scoring.score(pred, list(exam.answers)))
        answered = tuple(scoring.answered(pred, list(exam.answers)))
        return Marks(answered, answered, correct)
