"""Scores result folders: prints a table, writes results.csv into each, and a report.

results.parquet in the folder that was named has a row for every text.

python eval_gen.py --results_dir results/runs
python eval_gen.py --results_dir results/runs --baseline full --report report
python eval_gen.py --results_dir results/runs --baseline "ALLKV+slide (random)" --confidence 99.3
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from scope.errors import ScopeError
from scope.evaluation.baseline import Baseline, find_baseline, no_baseline
from scope.evaluation.evaluate import evaluate
from scope.evaluation.parquet import write_parquet
from scope.evaluation.results import find_result_folders
from scope.evaluation.statistics import CONFIDENCE
from scope.evaluation.tables import print_table


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 where there is no score, comparison, table or report."""
    arguments = _parser().parse_args(argv)
    try:
        folders = find_result_folders(arguments.results_dir)
        shown = tqdm(folders, desc="scoring", unit="folder", leave=False, disable=None)
        baseline: Baseline = no_baseline
        if arguments.baseline is not None:
            baseline = find_baseline(arguments.baseline, folders)
        evaluation = evaluate(shown, baseline, arguments.confidence)
    except ScopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if evaluation.rows:
        print_table(evaluation.rows)
        with _noted(evaluation.errors):
            write_parquet(evaluation.rows, arguments.results_dir / "results.parquet")
        if arguments.report:
            from scope.evaluation.report import write_report

            with _noted(evaluation.errors):
                print(f"\nreport: {write_report(evaluation, arguments.report)}")
    for warning in evaluation.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    errors = evaluation.errors or ([] if evaluation.rows else ["nothing could be scored"])
    for message in errors:
        print(f"error: {message}", file=sys.stderr)
    return 2 if errors else 0


@contextmanager
def _noted(errors: list[str]) -> Iterator[None]:
    """What cannot be written keeps nothing else from being written."""
    try:
        yield
    except ScopeError as error:
        errors.append(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--results_dir",
        type=Path,
        required=True,
        help="a result folder (<model>_<C> with one folder per data set), or any folder above some",
    )
    parser.add_argument(
        "--baseline",
        help="a result folder over the same data, `full` for the full cache among the results, or "
        "the name of a configuration among them; differences to it are paired by prompt",
    )
    parser.add_argument(
        "--confidence",
        type=_percent,
        default=CONFIDENCE,
        metavar="PERCENT",
        help="of all intervals (default 95); of n comparisons, 100 - 5/n (Bonferroni)",
    )
    parser.add_argument(
        "--report", type=Path, metavar="OUT", help="writes OUT/report.md and OUT/report.html"
    )
    return parser


def _percent(text: str) -> float:
    value = float(text)
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 100")
    return value


if __name__ == "__main__":
    sys.exit(main())
