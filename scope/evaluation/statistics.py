"""95 % intervals: answers in one prompt depend on each other, so prompts are resampled whole."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scope.errors import ScopeError
from scope.evaluation.results import DatasetResult, Record
from scope.tasks.task import Task

_RESAMPLES = 10_000
_SEED = 42


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval, in percent; the interval is None for a single prompt."""

    mean: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} [{self.interval[0]:.1f}, {self.interval[1]:.1f}]"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of per-prompt shares (0..1) with a percentile bootstrap interval over the prompts."""
    percent = 100 * np.asarray(values, dtype=float)
    mean = float(percent.mean())
    if len(percent) < 2:
        return Estimate(mean, None)
    from scipy.stats import bootstrap

    interval = bootstrap(
        (percent,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=_SEED
    ).confidence_interval
    return Estimate(mean, (float(interval.low), float(interval.high)))


def ratio(parts: Sequence[float], wholes: Sequence[float]) -> Estimate | None:
    """Sum of parts over sum of wholes, likewise; None where the wholes are nothing."""
    if not sum(wholes):
        return None
    pairs = np.array([parts, wholes], dtype=float)
    mean = 100 * pairs[0].sum() / pairs[1].sum()
    if len(parts) < 2:
        return Estimate(float(mean), None)
    drawn = np.random.default_rng(_SEED).integers(len(parts), size=(_RESAMPLES, len(parts)))
    part, whole = pairs[:, drawn].sum(axis=-1)
    low, high = np.percentile(100 * part[whole > 0] / whole[whole > 0], [2.5, 97.5])
    return Estimate(float(mean), (float(low), float(high)))


def paired_difference(result: DatasetResult, baseline: DatasetResult) -> Estimate:
    """Indexed accuracy minus the baseline's, prompt by prompt, on the prompts that both have.

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
    return estimate(
        [problem_accuracy(result.task, a) - problem_accuracy(result.task, b) for a, b in pairs]
    )


def problem_accuracy(task: Task, texts: Sequence[Record]) -> float:
    """Share of right answers, 0..1, in the texts that were drawn for one problem: pass@1."""
    return float(np.mean([task.mark(text, text.pred).accuracy for text in texts]))
