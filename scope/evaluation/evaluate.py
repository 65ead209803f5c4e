"""From result folders to rows of figures, with everything that went wrong told beside them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from scope.errors import ScopeError
from scope.evaluation import indexed
from scope.evaluation.baseline import Baseline, no_baseline
from scope.evaluation.results import DatasetResult, ResultFolder, read_dataset, write_results_csv
from scope.evaluation.statistics import (
    CONFIDENCE,
    Differences,
    Estimate,
    estimate,
    paired_differences,
    ratio,
)


@dataclass(frozen=True)
class Row:
    """One data set of one result folder.

    ``accuracy`` is the indexed score with its interval, of ``confidence`` percent as all intervals
    of the row; ``differences`` are None without a baseline for this data set.
    """

    result: DatasetResult
    score: indexed.Score
    accuracy: Estimate
    differences: Differences | None
    confidence: float

    @property
    def name(self) -> str:
        return self.result.name

    @property
    def kv_mib(self) -> float | None:
        """MiB of KV cache per sequence, from run.json."""
        return self._mib("kv_bytes_per_sequence")

    @property
    def read_mib(self) -> float | None:
        """MiB of it that a decode step reads on average, from run.json."""
        return self._mib("kv_bytes_read_per_step")

    def _mib(self, metric: str) -> float | None:
        count = self.result.run.count("metrics", metric)
        return None if count is None else count / 2**20

    @property
    def difference(self) -> Estimate | None:
        """The indexed score minus the baseline's."""
        return None if self.differences is None else self.differences.accuracy

    @property
    def right_of_answered_difference(self) -> Estimate | None:
        """Right answers among those that can be read, minus the baseline's."""
        return None if self.differences is None else self.differences.right_of_answered

    @cached_property
    def upstream(self) -> Estimate | None:
        """The upstream score with its interval."""
        return self._estimate(self.score.upstream_accuracies)

    @cached_property
    def lenient(self) -> Estimate | None:
        """The indexed score, read leniently."""
        return self._estimate(self.score.lenient_accuracies)

    @cached_property
    def right_of_answered(self) -> Estimate | None:
        """Right answers among those that can be read."""
        return ratio(self.score.right, self.score.read, self.confidence)

    def _estimate(self, accuracies: Sequence[float]) -> Estimate | None:
        return estimate(accuracies, self.confidence) if accuracies else None

    @cached_property
    def equal_tokens(self) -> Estimate | None:
        """Share of tokens that the full cache would choose too, mean of the prompts' shares."""
        prompts = self.result.run.table("metrics", "agreement", "by_prompt")
        if not prompts or len(prompts[0]) != 3:
            return None
        return self._estimate([equal for _, equal, _ in prompts])

    @property
    def equal_by_distance(self) -> list[tuple[float, float]]:
        """That share against the distance from the prompt, in tokens."""
        ranges = self.result.run.table("metrics", "agreement", "by_distance")
        if not ranges or len(ranges[0]) != 5:
            return []
        return [((first + last) / 2, equal) for first, last, _, equal, _ in ranges]

    @property
    def mean_kl(self) -> float | None:
        """Divergence of the predictions from the full cache's, in nats, from run.json."""
        return self.result.run.number("metrics", "agreement", "mean_kl")

    @property
    def tokens_per_second(self) -> float | None:
        return self.result.run.number("metrics", "tokens_per_second")


@dataclass(frozen=True)
class Evaluation:
    """Rows in the order of the folders; errors cost a difference or a file, warnings a row."""

    rows: list[Row]
    errors: list[str]
    warnings: list[str]
    confidence: float = CONFIDENCE  # of all intervals, in percent


def evaluate(
    folders: Iterable[ResultFolder],
    baseline: Baseline = no_baseline,
    confidence: float = CONFIDENCE,
) -> Evaluation:
    """Scores the folders, with intervals of so many percent, and writes each one's results.csv.

    A data set with a broken or duplicate line is not scored, and has -1 in results.csv.
    """
    evaluation = Evaluation([], [], [], confidence)
    for folder in folders:
        rows = []
        for dataset in folder.files:
            try:
                result = read_dataset(folder, dataset)
            except ScopeError as error:
                evaluation.warnings.append(f"not scored: {error}")
                continue
            rows.append(_row(result, baseline(result), evaluation))
        evaluation.rows.extend(rows)
        if rows:
            _write(folder, rows, evaluation)
    return evaluation


def _row(result: DatasetResult, baseline: DatasetResult | None, evaluation: Evaluation) -> Row:
    evaluation.warnings.extend(result.problems)
    if result.missing:
        spans = (f"{a}-{b}" if a < b else str(a) for a, b in result.missing)
        evaluation.warnings.append(
            f"{result.path}: rows {', '.join(spans)} of the data file are missing; "
            "start the run again to complete it"
        )
    score = indexed.score(result)
    confidence = evaluation.confidence
    accuracy = estimate(score.accuracies, confidence)
    differences = _differences(result, baseline, evaluation)
    return Row(result, score, accuracy, differences, confidence)


def _write(folder: ResultFolder, rows: Iterable[Row], evaluation: Evaluation) -> None:
    """results.csv, which has one name for all data sets: of several, each."""
    scores = {row.result.dataset: row.score for row in rows}
    figures = {
        dataset: round(score.indexed, 4) if score.upstream is None else score.upstream
        for dataset, score in scores.items()
    }
    try:
        write_results_csv(folder, ", ".join(dict.fromkeys(row.name for row in rows)), figures)
    except OSError as error:
        evaluation.warnings.append(
            f"{folder.path / 'results.csv'}: cannot be written ({error.strerror}); "
            "the printed table has its figures"
        )


def _differences(
    result: DatasetResult, baseline: DatasetResult | None, evaluation: Evaluation
) -> Differences | None:
    """The paired differences, or else None and a note why in ``evaluation``."""
    if baseline is None:
        return None
    ours, theirs = len(result.by_problem), len(baseline.by_problem)
    try:
        differences = paired_differences(result, baseline, evaluation.confidence)
    except ScopeError as error:
        evaluation.errors.append(str(error))
        return None
    if ours != theirs:
        evaluation.warnings.append(
            f"{result.path}: {ours} prompts, and {theirs} in the baseline; "
            "the difference is over those that both have"
        )
    return differences
