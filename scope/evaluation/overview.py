"""The published layout: a row for each method, a column for each data set and window."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from scope.evaluation.evaluate import Row
from scope.evaluation.statistics import Estimate
from scope.evaluation.tables import EMPTY, Column
from scope.tasks.registry import TASKS

_MARKS: dict[str, Callable[[Row], Estimate | None]] = {
    "indexed": lambda row: row.accuracy,
    "lenient": lambda row: row.lenient,
    "upstream": lambda row: row.upstream,
    "indexed, minus the baseline": lambda row: row.difference,
}

_COSTS: dict[str, Callable[[Row], float | None]] = {
    "KV MiB": lambda row: row.kv_mib,
    "read MiB": lambda row: row.read_mib,
}


@dataclass(frozen=True)
class Overview:
    """One model in one setting, by one mark."""

    title: str
    columns: Sequence[Column]


def overviews(rows: Sequence[Row]) -> Iterator[Overview]:
    """Tables of models with results on several data sets, in each setting that a K stands for."""

    def group(row: Row) -> tuple[str, int]:
        return row.result.model, row.result.task.k(row.result.questions)

    for (model, k), found in groupby(sorted(rows, key=group), key=group):
        members = list(found)
        if len({row.result.dataset for row in members}) < 2:
            continue
        for mark, read in _MARKS.items():
            if any(read(row) is not None for row in members):
                yield Overview(f"K {k}, {model}: {mark}", _columns(members, read))


def _columns(rows: Sequence[Row], read: Callable[[Row], Estimate | None]) -> list[Column]:
    """A method without a window is in the columns of every window."""
    by_method: dict[tuple[bool, str, int], list[Row]] = {}
    for row in rows:
        kind = not row.result.is_full_cache, row.name, row.result.capacity or 0
        by_method.setdefault(kind, []).append(row)
    methods = sorted(by_method)
    present = {row.result.dataset for row in rows}
    datasets = [*(name for name in TASKS if name in present), *sorted(present - TASKS.keys())]
    windows = sorted({window for row in rows if (window := _window(row)) is not None}) or [None]
    columns = [
        Column("method", tuple(name for _, name, _ in methods), is_text=True),
        Column("C", tuple(str(capacity or EMPTY) for _, _, capacity in methods)),
    ]
    for window in windows:
        at = "" if window is None else f", W {window}"
        found = [
            [_one(by_method[method], dataset, window) for dataset in datasets] for method in methods
        ]
        marks = [[None if row is None else read(row) for row in own] for own in found]
        for dataset, cells in zip(datasets, zip(*marks, strict=True), strict=True):
            columns.append(Column(f"{dataset}{at}", tuple(str(cell or EMPTY) for cell in cells)))
        means = [[None if mark is None else mark.mean for mark in own] for own in marks]
        columns.append(Column(f"mean{at}", tuple(map(_mean, means))))
        for title, cost in _COSTS.items():
            costs = [[None if row is None else cost(row) for row in own] for own in found]
            if any(value is not None for own in costs for value in own):
                columns.append(Column(f"{title}{at}", tuple(map(_mean, costs))))
    return columns


def _one(rows: Sequence[Row], dataset: str, window: int | None) -> Row | None:
    """The first of the results that belong in a cell."""
    fitting = (
        row for row in rows if row.result.dataset == dataset and _window(row) in (None, window)
    )
    return next(fitting, None)


def _window(row: Row) -> int | None:
    """W; the original's folders name one for the full cache too."""
    return None if row.result.is_full_cache else row.result.window


def _mean(values: Sequence[float | None]) -> str:
    """Over the data sets, where all are there."""
    there = [value for value in values if value is not None]
    return f"{sum(there) / len(there):.2f}" if len(there) == len(values) else EMPTY
