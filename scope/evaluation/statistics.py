"""Intervals: answers in one prompt depend on each other, so prompts are resampled whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scope.errors import ScopeError
from scope.evaluation.results import DatasetResult, Record
from scope.tasks.task import Task

CONFIDENCE = 95.0  # percent
_RESAMPLES = 10_000
_SEED = 42


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval, in percent; the interval is None for a single prompt."""

    mean: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} [{self.interval[0]:.1f}, {self.interval[1]:.1f}]"


@dataclass(frozen=True)
class Differences:
    """A result minus its baseline; ``right_of_answered`` is None where either answered nothing."""

    accuracy: Estimate
    right_of_answered: Estimate | None


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean of per-prompt shares (0..1) with a percentile bootstrap interval over the prompts."""
    percent = 100 * np.asarray(values, dtype=float)
    mean = float(percent.mean())
    if len(percent) < 2:
        return Estimate(mean, None)
    from scipy.stats import bootstrap

    interval = bootstrap(
        (percent,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=confidence / 100,
        method="percentile",
        rng=_SEED,
    ).confidence_interval
    return Estimate(mean, (float(interval.low), float(interval.high)))


def ratio(
    parts: Sequence[float], wholes: Sequence[float], confidence: float = CONFIDENCE
) -> Estimate | None:
    """Sum of parts over sum of wholes, likewise; None where the wholes are nothing."""
    return _of_sums(lambda sums: sums[0] / sums[1], [parts, wholes], confidence)


def _of_sums(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    columns: Sequence[Sequence[float]],
    confidence: float,
) -> Estimate | None:
    """A share of the sums of columns over prompts; None where it is undefined, as 0 / 0."""
    values = np.array(columns, dtype=float)
    prompts = values.shape[1]
    drawn = np.random.default_rng(_SEED).integers(prompts, size=(_RESAMPLES, prompts))
    with np.errstate(invalid="ignore"):
        mean = 100 * float(statistic(values.sum(axis=1)))
        shares = 100 * statistic(values[:, drawn].sum(axis=-1))
    if np.isnan(mean):
        return None
    if prompts < 2:
        return Estimate(mean, None)
    tail = (100 - confidence) / 2
    low, high = np.nanpercentile(shares, [tail, 100 - tail])
    return Estimate(mean, (float(low), float(high)))


def paired_differences(
    result: DatasetResult, baseline: DatasetResult, confidence: float = CONFIDENCE
) -> Differences:
    """The indexed accuracy, and right answers among those that can be read, minus the baseline's.

    Prompts are compared with themselves and resampled in pairs, those that both have.

    Raises:
        ScopeError: the two were not made from the same data file.
    """
    hashes = [run.text("data", "sha256") for run in (result.run, baseline.run)]
    if all(hashes) and hashes[0] != hashes[1]:
        raise ScopeError(
            f"{result.path}:1: made from another data file than {baseline.path} "
            f"(sha256 {hashes[0][:8]}, {hashes[1][:8]}); compare runs over the same one"
        )
    ours = result.by_problem
    theirs = {texts[0].task: texts for texts in baseline.by_problem}
    pairs = [(texts, theirs[texts[0].task]) for texts in ours if texts[0].task in theirs]
    if len(pairs) < min(len(ours), len(baseline.by_problem)):
        stranger = next(texts[0] for texts in ours if texts[0].task not in theirs)
        raise ScopeError(
            f"{result.path}:{stranger.line}: these questions are not in the baseline "
            f"{baseline.path}; compare runs over the same data file"
        )
    ours_of = np.array([_tally(result.task, texts) for texts, _ in pairs])
    theirs_of = np.array([_tally(result.task, texts) for _, texts in pairs])
    accuracy, right, read = ours_of.T
    base_accuracy, base_right, base_read = theirs_of.T
    return Differences(
        estimate(accuracy - base_accuracy, confidence),
        _of_sums(
            lambda sums: sums[0] / sums[1] - sums[2] / sums[3],
            [right, read, base_right, base_read],
            confidence,
        ),
    )


def _tally(task: Task, texts: Sequence[Record]) -> tuple[float, float, float]:
    """Of the texts that were drawn for one problem: accuracy (pass@1), right and read answers."""
    marks = [task.mark(text, text.pred) for text in texts]
    shares = [(mark.accuracy, sum(mark.correct), sum(mark.answered)) for mark in marks]
    accuracy, right, read = np.mean(shares, axis=0)
    return float(accuracy), float(right), float(read)
