"""The fair score: each answer is looked up by its printed number, and read with tolerance.

Beside it, what else a reader must know to trust an accuracy: how many questions were answered at
all, how many in the asked-for form, where the accuracy falls off, and how the output ended.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scope.evaluation.results import DatasetResult, Record
from scope.tasks.task import Task

_NGRAM = 8


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
    """Scores one data set."""
    records, task = result.records, result.task
    marks = [task.mark(record, record.pred) for record in records]
    tokens = [r.generated_tokens for r in records if r.generated_tokens is not None]
    return Score(
        upstream=_upstream(task, records) if task.is_published else None,
        accuracies=tuple(m.accuracy for m in marks),
        by_index=_mean_by_index([m.correct for m in marks]),
        answered=float(np.mean(np.concatenate([m.answered for m in marks]))),
        formatted=float(np.mean(np.concatenate([m.formatted for m in marks]))),
        repetition=float(np.mean([repetition(r.pred) for r in records])),
        tokens=float(np.mean(tokens)) if len(tokens) == len(records) else None,
        characters=float(np.mean([len(r.pred) for r in records])),
        stopped=Counter(r.stopped for r in records if r.stopped),
    )


def repetition(text: str) -> float:
    """Share of the text's 8-word sequences that repeat an earlier one."""
    words = text.split()
    total = len(words) - _NGRAM + 1
    if total < 1:
        return 0.0
    return 1 - len(set(zip(*(words[i:] for i in range(_NGRAM)), strict=False))) / total


def _upstream(task: Task, records: Sequence[Record]) -> float:
    """The published score: mean over prompts in percent, rounded as the original does."""
    total = sum(task.upstream_accuracy(record, record.pred) for record in records)
    return round(100 * total / len(records), 4)


def _mean_by_index(correct: Sequence[Sequence[bool]]) -> tuple[float, ...]:
    columns: list[list[bool]] = [[] for _ in range(max(map(len, correct)))]
    for row in correct:
        for column, value in zip(columns, row, strict=False):
            column.append(value)
    return tuple(float(np.mean(column)) for column in columns)
