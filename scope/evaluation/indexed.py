"""The fair score: each answer is looked up by its printed number, and read with tolerance.

Beside it, what else a reader must know to trust an accuracy: how many questions were answered at
all, how many in the asked-for form, where the accuracy falls off, and how the output ended.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from scope.errors import ScopeError
from scope.evaluation import upstream
from scope.evaluation.answers import read_choice, read_number, read_options, split_answers
from scope.evaluation.results import ORIGINAL_DATASETS, DatasetResult, Record
from scope.recall import scoring as recall

_FIRST_QUESTION = re.compile(r"Question_([0-9]+):")
_MARKER = "Following Question:"
_NGRAM = 8


@dataclass(frozen=True)
class Marks:
    """One prompt's questions, in order: was each answered, in the asked-for form, and rightly?"""

    answered: tuple[bool, ...]
    formatted: tuple[bool, ...]
    correct: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        return sum(self.correct) / len(self.correct)


@dataclass(frozen=True)
class Score:
    """Both scores and the diagnostics of one data set in one result folder; shares are 0..1.

    ``upstream`` is in percent, and None for a data set that the original does not have.
    ``accuracies`` holds the indexed accuracy of each prompt,
    ``by_index`` that of each place in the prompt's list of questions. ``repetition`` is the share
    of 8-word sequences that the same output has had before. ``tokens`` and ``characters`` are mean
    lengths; tokens are None where they are not on record. ``stopped`` counts how outputs ended,
    where the runner said so.
    """

    upstream: float | None
    accuracies: tuple[float, ...]
    by_index: tuple[float, ...]
    answered: float
    formatted: float
    repetition: float
    tokens: float | None
    characters: float
    stopped: Counter[str]

    @property
    def indexed(self) -> float:
        """Mean over prompts in percent, as the upstream score is."""
        return 100 * float(np.mean(self.accuracies))


def score(result: DatasetResult) -> Score:
    """Scores one data set.

    Raises:
        ScopeError: a record whose prompt or gold answers are not LongGenBench's, by file and line.
    """
    records = result.records
    marks = []
    for record in records:
        try:
            marks.append(mark(record, result.dataset))
        except ScopeError as error:
            raise ScopeError(f"{result.path}:{record.line}: {error}") from None
    tokens = [r.generated_tokens for r in records if r.generated_tokens is not None]
    return Score(
        upstream=upstream.score(records) if result.dataset in ORIGINAL_DATASETS else None,
        accuracies=tuple(m.accuracy for m in marks),
        by_index=_mean_by_index([m.correct for m in marks]),
        answered=float(np.mean(np.concatenate([m.answered for m in marks]))),
        formatted=float(np.mean(np.concatenate([m.formatted for m in marks]))),
        repetition=float(np.mean([repetition(r.pred) for r in records])),
        tokens=float(np.mean(tokens)) if len(tokens) == len(records) else None,
        characters=float(np.mean([len(r.pred) for r in records])),
        stopped=Counter(r.stopped for r in records if r.stopped),
    )


def mark(record: Record, dataset: str) -> Marks:
    """Marks one prompt's answers; text after the last question's answer does not count."""
    if dataset == "recall":
        correct = tuple(recall.score(record.pred, list(record.answers)))
        answered = tuple(recall.answered(record.pred, list(record.answers)))
        return Marks(answered, answered, correct)
    first = _first_number(record.prompt)
    pieces = split_answers(record.pred)
    numeric = "####" in record.answers[0]
    answered, formatted, correct = [], [], []
    for offset, gold in enumerate(record.answers):
        piece = pieces.get(first + offset, "")
        if numeric:
            said, right = read_number(piece), read_gold_number(gold)
            in_form = upstream.read_numbers(f"Answer_0: {piece}")
        else:
            question = record.questions[offset] if offset < len(record.questions) else ""
            said, right = read_choice(piece, read_options(question)), gold.strip().upper()
            in_form = upstream.read_choices(f"Answer_0: {piece}")
        answered.append(said is not None)
        formatted.append(bool(in_form))
        correct.append(said == right)
    return Marks(tuple(answered), tuple(formatted), tuple(correct))


def repetition(text: str) -> float:
    """Share of the text's 8-word sequences that repeat an earlier one."""
    words = text.split()
    total = len(words) - _NGRAM + 1
    if total < 1:
        return 0.0
    return 1 - len(set(zip(*(words[i:] for i in range(_NGRAM)), strict=False))) / total


def read_gold_number(answer: str) -> Fraction:
    """The number after ``####`` in a GSM8K answer.

    Raises:
        ScopeError: there is none.
    """
    number = read_number(answer.rpartition("####")[2])
    if number is None:
        raise ScopeError(f"the gold answer {answer[-40:]!r} has no number after '####'")
    return number


def _first_number(prompt: str) -> int:
    match = _FIRST_QUESTION.search(prompt, max(prompt.rfind(_MARKER), 0))
    if match is None:
        raise ScopeError("the prompt has no 'Question_<number>:'; it is not a LongGenBench prompt")
    return int(match[1])


def _mean_by_index(correct: Sequence[Sequence[bool]]) -> tuple[float, ...]:
    columns: list[list[bool]] = [[] for _ in range(max(map(len, correct)))]
    for row in correct:
        for column, value in zip(columns, row, strict=False):
            column.append(value)
    return tuple(float(np.mean(column)) for column in columns)
