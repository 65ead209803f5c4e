"""From result folders to rows of figures, with everything that went wrong told beside them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scope.errors import ScopeError
from scope.evaluation import indexed
from scope.evaluation.results import (
    DatasetResult,
    ResultFolder,
    find_result_folders,
    read_dataset,
    write_results_csv,
)
from scope.evaluation.statistics import Estimate, estimate, paired_difference


@dataclass(frozen=True)
class Row:
    """One data set of one result folder.

    ``accuracy`` is the indexed score with its interval; ``difference`` is that score minus the
    baseline's, None without a baseline for this data set.
    """

    name: str
    folder: ResultFolder
    result: DatasetResult
    score: indexed.Score
    accuracy: Estimate
    difference: Estimate | None

    @property
    def kv_bytes(self) -> int | None:
        """Bytes of KV cache per sequence, from run.json."""
        return self.result.run.get("metrics", {}).get("kv_bytes_per_sequence")

    @property
    def equal_tokens(self) -> float | None:
        """Share of tokens that the full cache would choose too, from run.json."""
        return self.result.run.get("metrics", {}).get("agreement", {}).get("equal_tokens")

    @property
    def mean_kl(self) -> float | None:
        """Divergence of the predictions from the full cache's, in nats, from run.json."""
        return self.result.run.get("metrics", {}).get("agreement", {}).get("mean_kl")

    @property
    def tokens_per_second(self) -> float | None:
        return self.result.run.get("metrics", {}).get("tokens_per_second")


@dataclass(frozen=True)
class Evaluation:
    """Rows in the order of the folders; errors cost a row or a difference, warnings do not."""

    rows: list[Row]
    errors: list[str]
    warnings: list[str]


def read_baseline(path: Path) -> Mapping[str, DatasetResult]:
    """The data sets of the one result folder at ``path``.

    Raises:
        ScopeError: no result folder there, several, or one that cannot be read.
    """
    folders = find_result_folders(path)
    if len(folders) > 1:
        raise ScopeError(f"--baseline {path} holds {len(folders)} result folders; name one of them")
    return {dataset: read_dataset(folders[0], dataset) for dataset in folders[0].files}


def evaluate(
    folders: Iterable[ResultFolder], baseline: Mapping[str, DatasetResult] | None = None
) -> Evaluation:
    """Scores the folders and writes each one's results.csv.

    A folder with a broken or duplicate line is not scored at all, and its results.csv is left
    alone; the others are.
    """
    evaluation = Evaluation([], [], [])
    for folder in folders:
        try:
            name = folder.name
            results = [read_dataset(folder, dataset) for dataset in folder.files]
            scores = {result.dataset: indexed.score(result) for result in results}
        except (ScopeError, OSError) as error:
            evaluation.errors.append(str(error))
            continue
        try:
            write_results_csv(
                folder,
                {
                    key: round(score.indexed, 4) if score.upstream is None else score.upstream
                    for key, score in scores.items()
                },
            )
        except OSError as error:
            evaluation.warnings.append(f"{folder.path}/results.csv: not written ({error.strerror})")
        for result in results:
            if result.missing:
                evaluation.warnings.append(
                    f"{result.path}: rows {_ranges(result.missing)} of the data file are missing; "
                    "start the run again to complete it"
                )
            score = scores[result.dataset]
            difference = _difference(result, (baseline or {}).get(result.dataset), evaluation)
            evaluation.rows.append(
                Row(name, folder, result, score, estimate(score.accuracies), difference)
            )
    return evaluation


def _difference(
    result: DatasetResult, baseline: DatasetResult | None, evaluation: Evaluation
) -> Estimate | None:
    """The paired difference, or else None and a note why in ``evaluation``."""
    if baseline is None:
        return None
    ours, theirs = len(result.records), len(baseline.records)
    try:
        difference = paired_difference(result, baseline)
    except ScopeError as error:
        evaluation.errors.append(str(error))
        return None
    if ours != theirs:
        evaluation.warnings.append(
            f"{result.path}: {ours} prompts, and {theirs} in the baseline; "
            "the difference is over those that both have"
        )
    return difference


def _ranges(numbers: Iterable[int]) -> str:
    """``0-3, 7`` for 0, 1, 2, 3, 7."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{first}-{last}" if first < last else str(first) for first, last in spans)
