"""What the runner, the scorer and the builder must know of a data set."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

_SHORT_K, _SHORT_TOKENS, _LONG_TOKENS = 30, 4096, 8192
_PUBLISHED_LONG_TOKENS = 7950


class Exam(Protocol):
    """One prompt with what is asked in it, as in a data file or in a result file."""

    @property
    def prompt(self) -> str: ...
    @property
    def questions(self) -> Sequence[str]: ...
    @property
    def answers(self) -> Sequence[str]:
        """The gold answers, one or more."""
        ...


@dataclass(frozen=True)
class Marks:
    """One prompt's questions, in order: was each answered, in the asked-for form, and rightly?"""

    answered: tuple[bool, ...]
    formatted: tuple[bool, ...]
    correct: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        return sum(self.correct) / len(self.correct)


class Task(ABC):
    """A data set.

    Attributes:
        name: on the command line, and of the folder that its results are in.
        instruction: what is put before a prompt.
        is_published: whether the original has it: such are run by default, have a column in
            results.csv, and an upstream score.
        sizes: questions per prompt of the files for 4K and 8K outputs, by the ``--K`` that asks for
            them, 30 and 60; only where they differ.
        published_drops: rows of the published files, from 0, that the original leaves out.
    """

    name: ClassVar[str]
    instruction: ClassVar[str] = ""
    is_published: ClassVar[bool] = False
    sizes: ClassVar[Mapping[int, int]] = {}
    published_drops: ClassVar[Sequence[int]] = ()

    @abstractmethod
    def check(self, exam: Exam) -> None:
        """Refuse what `mark` could not mark.

        Raises:
            ScopeError: what is wrong; the caller adds file and line.
        """

    @abstractmethod
    def mark(self, exam: Exam, pred: str) -> Marks:
        """Mark what a model wrote; ``exam`` has been checked, ``pred`` may be any text."""

    def mark_leniently(self, exam: Exam, pred: str) -> Marks | None:
        """The same where an answer needs no set phrase; None where there is no such reading."""
        return None

    def lines_back(self, exam: Exam) -> Sequence[int | None]:
        """Of each question, how many lines ago the output had last written what it needs.

        None where that stands in the prompt alone. Empty where no question needs an output, or all
        need the line before.
        """
        return ()

    def upstream_accuracy(self, exam: Exam, pred: str) -> float:
        """The original's score of one prompt, 0 to 1; asked of published data sets only."""
        raise NotImplementedError

    def questions(self, k: int) -> int:
        """Questions per prompt of the data file that ``--K k`` names."""
        return self.sizes.get(k, k)

    def k(self, questions: int) -> int:
        """The ``--K`` that stands for a data file with so many questions per prompt."""
        sizes = {questions: k for k, questions in self.sizes.items()}
        return sizes.get(questions, questions)

    def max_new_tokens(self, k: int, upstream: bool) -> int:
        """T where none is given: enough for k answers, or the published runner's choice."""
        if not upstream:
            return _SHORT_TOKENS if k <= _SHORT_K else _LONG_TOKENS
        # The original decides after it has turned K = 30 into csqa's 40.
        short = self.questions(k) == _SHORT_K
        return _SHORT_TOKENS if short else _PUBLISHED_LONG_TOKENS
