"""The columns of the printed table and of the report's tables."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from scope.evaluation.evaluate import Row
from scope.evaluation.statistics import Estimate

EMPTY = "–"


@dataclass(frozen=True)
class Column:
    """A titled column with one cell per row; text stands left, figures stand right."""

    title: str
    cells: tuple[str, ...]
    is_text: bool = False


def short_columns(rows: Sequence[Row]) -> list[Column]:
    """What fits a terminal. Columns that would be empty are left out."""
    return _drop_empty(
        [
            _column("configuration", rows, lambda row: row.name, is_text=True),
            _column("C", rows, lambda row: _count(row.result.capacity)),
            _column("W", rows, lambda row: _count(row.result.window)),
            _column("data", rows, lambda row: row.result.dataset, is_text=True),
            *_scores(rows),
            *_answers(rows),
            *_costs(rows),
        ]
    )


def print_table(rows: Sequence[Row]) -> None:
    """Prints the short columns."""
    columns = short_columns(rows)
    widths = [max(map(len, [column.title, *column.cells])) for column in columns]
    for row in zip(*([column.title, *column.cells] for column in columns), strict=True):
        cells = (
            cell.ljust(width) if column.is_text else cell.rjust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        )
        print("  ".join(cells).rstrip())


def full_columns(rows: Sequence[Row]) -> list[Column]:
    """Everything there is to know about the rows of one data set and model."""
    return _drop_empty(
        [
            _column("configuration", rows, lambda row: row.name, is_text=True),
            _column("C", rows, lambda row: _count(row.result.capacity)),
            _column("W", rows, lambda row: _count(row.result.window)),
            *_scores(rows),
            *_answers(rows),
            _column("lenient answered %", rows, lambda row: _percent(row.score.lenient_answered)),
            _column("in format %", rows, lambda row: _percent(row.score.formatted)),
            _column("repeated %", rows, lambda row: _percent(row.score.repetition)),
            *_costs(rows),
        ]
    )


def _scores(rows: Sequence[Row]) -> list[Column]:
    return [
        _column("prompts", rows, lambda row: str(len(row.result.by_problem))),
        _column("texts each", rows, _texts_each),
        _column("upstream", rows, lambda row: str(row.upstream or EMPTY)),
        _column("indexed", rows, lambda row: str(row.accuracy)),
        _column("lenient", rows, lambda row: str(row.lenient or EMPTY)),
        _column("vs baseline", rows, lambda row: _signed(row.difference)),
        _column("equal %", rows, lambda row: str(row.equal_tokens or EMPTY)),
        _column("KL", rows, lambda row: _decimal(row.mean_kl, 3)),
    ]


def _answers(rows: Sequence[Row]) -> list[Column]:
    return [
        _column("answered %", rows, lambda row: _percent(row.score.answered)),
        _column("right of answered %", rows, lambda row: str(row.right_of_answered or EMPTY)),
        _column("of answered vs baseline", rows, lambda r: _signed(r.right_of_answered_difference)),
        _column("length", rows, _length),
        _column("at limit %", rows, lambda row: _percent(row.score.at_the_limit)),
    ]


def _costs(rows: Sequence[Row]) -> list[Column]:
    return [
        _column("KV MiB", rows, lambda row: _decimal(row.kv_mib, 2)),
        _column("read MiB", rows, lambda row: _decimal(row.read_mib, 2)),
        _column("tokens/s", rows, lambda row: _decimal(row.tokens_per_second)),
    ]


def _column(
    title: str, rows: Iterable[Row], cell: Callable[[Row], str], is_text: bool = False
) -> Column:
    return Column(title, tuple(cell(row) for row in rows), is_text)


def _drop_empty(columns: Iterable[Column]) -> list[Column]:
    return [column for column in columns if any(cell != EMPTY for cell in column.cells)]


def _count(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.0f}"


def _decimal(value: float | None, places: int = 1) -> str:
    return EMPTY if value is None else f"{value:.{places}f}"


def _percent(share: float | None) -> str:
    return EMPTY if share is None else f"{100 * share:.1f}"


def _signed(difference: Estimate | None) -> str:
    if difference is None:
        return EMPTY
    text = str(difference)
    return text if text.startswith("-") else f"+{text}"


def _texts_each(row: Row) -> str:
    """Of sampled runs; the indexed score is then pass@1."""
    each = len(row.result.records) / len(row.result.by_problem)
    return EMPTY if each == 1 else f"{each:.3g}"


def _length(row: Row) -> str:
    if row.score.tokens is not None:
        return f"{row.score.tokens:.0f} tokens"
    return f"{row.score.characters:.0f} chars"
