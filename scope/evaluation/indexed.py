"""The marks of a result: as the original reads it, by printed number, and read leniently.

docs/scores.md has the rules. Beside them, what else a reader must know to trust an accuracy: how
many questions were answered at all, how many in the asked-for form, where the accuracy falls off,
and how the output ended.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scope.evaluation.results import DatasetResult

_NGRAM = 8


@dataclass(frozen=True)
class Score:
    """All marks and the diagnostics of one data set in one result folder; shares are 0..1.

    Attributes:
        upstream: in percent, as the original rounds it; None for a data set that it does not have.
        upstream_accuracies: the same of each prompt; empty for such a data set.
        accuracies: the indexed accuracy of each prompt, the mean over its texts.
        text_accuracies: the same of each text, in the order of the records.
        lenient_accuracies: the same, read leniently; empty where the data set has no such reading.
        by_index: the indexed accuracy of each place in the prompt's list of questions.
        by_lines_back: the same by how many lines ago the output had last written what a question
            needs: lines, accuracy and number of questions, from the nearest on.
        answered: questions with an answer that can be read, and ``lenient_answered`` where it is
            read leniently.
        right, read: of each prompt, how many answers are right and how many can be read.
        formatted: questions with an answer that the upstream score can read.
        repetition: share of 8-word sequences that the same output has had before.
        tokens, characters: mean lengths; tokens are None where they are not on record.
        stopped: how outputs ended, where the runner said so.
    """

    upstream: float | None
    upstream_accuracies: tuple[float, ...]
    accuracies: tuple[float, ...]
    text_accuracies: tuple[float, ...]
    lenient_accuracies: tuple[float, ...]
    by_index: tuple[float, ...]
    by_lines_back: tuple[tuple[int, float, int], ...]
    answered: float
    lenient_answered: float | None
    right: tuple[float, ...]
    read: tuple[float, ...]
    formatted: float
    repetition: float
    tokens: float | None
    characters: float
    stopped: Counter[str]

    @property
    def indexed(self) -> float:
        """Mean over prompts in percent, as the upstream score is."""
        return 100 * float(np.mean(self.accuracies))

    @property
    def at_the_limit(self) -> float | None:
        """Share of outputs that ended at T and not by themselves; None where not on record."""
        total = sum(self.stopped.values())
        return self.stopped["length"] / total if total else None


def score(result: DatasetResult) -> Score:
    """Scores one data set."""
    records, task = result.records, result.task
    marks = [task.mark(record, record.pred) for record in records]
    lenient = [m for r in records if (m := task.mark_leniently(r, r.pred)) is not None]
    upstream = [task.upstream_accuracy(r, r.pred) for r in records] if task.is_published else []
    tokens = [r.generated_tokens for r in records if r.generated_tokens is not None]
    return Score(
        # Rounded as the original does.
        upstream=round(100 * sum(upstream) / len(records), 4) if upstream else None,
        upstream_accuracies=per_problem(result, upstream),
        accuracies=per_problem(result, [m.accuracy for m in marks]),
        text_accuracies=tuple(m.accuracy for m in marks),
        lenient_accuracies=per_problem(result, [m.accuracy for m in lenient]),
        by_index=_mean_by_index([m.correct for m in marks]),
        by_lines_back=_by_lines_back(
            [task.lines_back(record) for record in records], [m.correct for m in marks]
        ),
        answered=_share([m.answered for m in marks]),
        lenient_answered=_share([m.answered for m in lenient]) if lenient else None,
        right=per_problem(result, [sum(m.correct) for m in marks]),
        read=per_problem(result, [sum(m.answered) for m in marks]),
        formatted=_share([m.formatted for m in marks]),
        repetition=float(np.mean([repetition(r.pred) for r in records])),
        tokens=float(np.mean(tokens)) if len(tokens) == len(records) else None,
        characters=float(np.mean([len(r.pred) for r in records])),
        stopped=Counter(r.stopped for r in records if r.stopped),
    )


def _share(marks: Sequence[Sequence[bool]]) -> float:
    return float(np.mean(np.concatenate(marks)))


def per_problem(result: DatasetResult, values: Sequence[float]) -> tuple[float, ...]:
    """A value of every record, or none at all, as the mean over the texts of each problem."""
    if not values:
        return ()
    of_line = {record.line: value for record, value in zip(result.records, values, strict=True)}
    problems = result.by_problem
    return tuple(float(np.mean([of_line[text.line] for text in texts])) for texts in problems)


def repetition(text: str) -> float:
    """Share of the text's 8-word sequences that repeat an earlier one."""
    words = text.split()
    total = len(words) - _NGRAM + 1
    if total < 1:
        return 0.0
    return 1 - len(set(zip(*(words[i:] for i in range(_NGRAM)), strict=False))) / total


def _mean_by_index(correct: Sequence[Sequence[bool]]) -> tuple[float, ...]:
    columns: list[list[bool]] = [[] for _ in range(max(map(len, correct)))]
    for row in correct:
        for column, value in zip(columns, row, strict=False):
            column.append(value)
    return tuple(float(np.mean(column)) for column in columns)


def _by_lines_back(
    back: Sequence[Sequence[int | None]], correct: Sequence[Sequence[bool]]
) -> tuple[tuple[int, float, int], ...]:
    marks: dict[int, list[bool]] = {}
    for distances, row in zip(back, correct, strict=True):
        for distance, is_right in zip(distances, row, strict=False):
            if distance is not None:
                marks.setdefault(distance, []).append(is_right)
    return tuple((lines, float(np.mean(own)), len(own)) for lines, own in sorted(marks.items()))
