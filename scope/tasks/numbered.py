"""Data sets in LongGenBench's form: numbered questions in one prompt, answers under their numbers.

A prompt is ``Examples:``, all demonstration questions, all their answers, ``Following Question:``,
and the questions, numbered on from the demonstrations.
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import ClassVar

from scope.errors import ScopeError
from scope.tasks import sources
from scope.tasks.answers import split_answers
from scope.tasks.sources import Hub, Item, Row, Source
from scope.tasks.task import Exam, Marks, Task

_FIRST_QUESTION = re.compile(r"Question_([0-9]+):")
_QUESTION_LINE = re.compile(r"^Question_(\d+):", re.MULTILINE)
_FOLLOWING = "Following Question:"


class NumberedTask(Task):
    """Base of such data sets; `scope.longgenbench.build` builds files of them.

    Attributes:
        hub: where the questions are had; None where they come from local files only.
        gap: what stands between two questions of a prompt.
    """

    hub: ClassVar[Hub | None] = None
    gap: ClassVar[str] = ""

    @abstractmethod
    def item(self, row: Row) -> Item:
        """One row of the source as a question.

        Raises:
            KeyError, TypeError: the row is of another form.
        """

    @abstractmethod
    def has_gold(self, item: Item) -> bool:
        """Whether an item read from the source has a gold answer."""

    @abstractmethod
    def gold(self, answer: str) -> Hashable:
        """What a gold answer says.

        Raises:
            ScopeError: nothing that this data set has as an answer.
        """

    @abstractmethod
    def said(self, answer: str, question: str) -> Hashable | None:
        """What a model's answer to a question says, None where that cannot be read."""

    def hinted(self, answer: str, question: str) -> Hashable | None:
        """The same without the set phrase, where there is a reading of that kind."""
        return self.said(answer, question)

    @abstractmethod
    def upstream_gold(self, answer: str) -> str | None:
        """A gold answer as the original reads it."""

    @abstractmethod
    def upstream_said(self, text: str) -> list[str]:
        """All answers of a text in the order of printing, as the original reads them."""

    def read(self, source: Path | None) -> Source:
        """The items of a local file (``.jsonl``, ``.parquet``), or of the hub.

        Raises:
            ScopeError: the data cannot be had or is not in the expected form.
        """
        if source is None:
            rows, origin = sources.read_hub(self.hub)
            return Source({"": self._items(rows, origin["hub"])}, origin)
        if not source.is_file():
            raise ScopeError(f"--source {source}: a .jsonl or .parquet file was expected")
        items = self._items(sources.read_rows(source), source.name)
        return Source({"": items}, sources.local_origin([source]))

    def check_demonstrations(self, text: str, upstream: bool) -> None:
        """Refuse what `write`, or else `write_upstream`, cannot use.

        Raises:
            ScopeError: what was expected; the caller adds the file.
        """
        if not _QUESTION_LINE.search(text):
            raise ScopeError("no 'Question_1:'; demonstrations were expected")

    def write(
        self, demonstrations: str, subject: str, items: Sequence[Item]
    ) -> tuple[str, list[str]]:
        """The prompt of some items, and its list of questions.

        Args:
            demonstrations: numbered questions and their answers, checked.
            subject: named at the head; may be empty.
            items: what to ask.
        """
        questions = [_with_options(item) for item in items]
        first = 1 + max(map(int, _QUESTION_LINE.findall(demonstrations)))
        head = f"Subject: {subject.replace('_', ' ')}\n\n" if subject else ""
        return head + self.prompt(demonstrations, questions, first), questions

    def write_upstream(
        self, demonstrations: str, subject: str, items: Sequence[Item]
    ) -> tuple[str, list[str]]:
        """The same as the published files have it, faults included."""
        return self.write(demonstrations, subject, items)

    def prompt(self, demonstrations: str, questions: Sequence[str], first: int) -> str:
        """Demonstrations and questions as one text; the questions are numbered from ``first``."""
        blocks = "".join(
            f"Question_{number}:\n{question}\n{self.gap}"
            for number, question in enumerate(questions, start=first)
        )
        return f"Examples: \n{demonstrations}\n\n{_FOLLOWING} \n{blocks}\n"

    def check(self, exam: Exam) -> None:
        _first_number(exam.prompt)
        for answer in exam.answers:
            self.gold(answer)

    def mark(self, exam: Exam, pred: str) -> Marks:
        """Looks each answer up by its number; text after the last question's does not count."""
        return self._mark(exam, pred, self.said)

    def mark_leniently(self, exam: Exam, pred: str) -> Marks:
        return self._mark(exam, pred, self.hinted)

    def _mark(self, exam: Exam, pred: str, read: Callable[[str, str], Hashable | None]) -> Marks:
        first = _first_number(exam.prompt)
        pieces = split_answers(pred)
        answered, formatted, correct = [], [], []
        for place, answer in enumerate(exam.answers):
            piece = pieces.get(first + place, "")
            question = exam.questions[place] if place < len(exam.questions) else ""
            said = read(piece, question)
            answered.append(said is not None)
            formatted.append(bool(self.upstream_said(f"Answer_0: {piece}")))
            correct.append(said == self.gold(answer))
        return Marks(tuple(answered), tuple(formatted), tuple(correct))

    def upstream_accuracy(self, exam: Exam, pred: str) -> float:
        """Compares the i-th answer that was printed with the i-th gold answer.

        So one answer that is skipped or cannot be read moves all later ones out of place.
        """
        gold = map(self.upstream_gold, exam.answers)
        found = self.upstream_said(pred)
        return sum(a == b for a, b in zip(gold, found, strict=False)) / len(exam.answers)

    def _items(self, rows: Sequence[Row], name: str) -> tuple[Item, ...]:
        items = []
        for number, row in enumerate(rows, start=1):
            try:
                item = self.item(row)
            except (KeyError, TypeError) as error:
                raise ScopeError(
                    f"{name}, row {number}: not a {self.name} row ({error!r})"
                ) from None
            if not self.has_gold(item):
                raise ScopeError(f"{name}, row {number}: no gold answer; use a split that has them")
            items.append(item)
        return tuple(items)


def _with_options(item: Item) -> str:
    if not item.options:
        return item.question
    options = " ".join(f"({chr(ord('A') + i)}) {text}" for i, text in enumerate(item.options))
    return f"{item.question}\n{options}"


def _first_number(prompt: str) -> int:
    match = _FIRST_QUESTION.search(prompt, max(prompt.rfind(_FOLLOWING), 0))
    if match is None:
        raise ScopeError("the prompt has no 'Question_<number>:'; it is not a LongGenBench prompt")
    return int(match[1])
