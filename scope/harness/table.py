"""The table that a run ends with."""

from typing import Any

from scope.evaluation import indexed
from scope.evaluation.results import find_result_folders, read_dataset
from scope.harness.jobs import Job


def print_table(finished: list[tuple[Job, dict[str, Any]]]) -> None:
    """One line per job: accuracy, closeness to the full cache, memory and speed."""
    header = ("configuration", "data", "accuracy", "indexed", "equal", "KL", "KV MiB", "tokens/s")
    rows = [header] + [_row(job, run["metrics"]) for job, run in finished]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    print()
    for number, row in enumerate(rows):
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in _with(row, widths)]
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def _with(row: tuple[str, ...], widths: list[int]) -> enumerate:
    return enumerate(zip(row, widths, strict=True))


def _row(job: Job, metrics: dict[str, Any]) -> tuple[str, ...]:
    scores = indexed.score(read_dataset(find_result_folders(job.folder.parent)[0], job.dataset))
    closeness = metrics.get("agreement")
    return (
        job.label,
        job.dataset,
        f"{scores.upstream:.2f}",
        f"{scores.indexed:.2f}",
        f"{closeness['equal_tokens']:.3f}" if closeness else "",
        f"{closeness['mean_kl']:.3f}" if closeness else "",
        f"{metrics['kv_bytes_per_sequence'] / 2**20:.2f}",
        f"{metrics['tokens_per_second']:.1f}",
    )
