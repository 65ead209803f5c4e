"""The report's pictures, as SVG texts; `styles` says what each configuration looks like in them."""

import io
import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from operator import attrgetter
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from scope.evaluation.evaluate import Row
from scope.evaluation.styles import LINES

# By name of a configuration, as `styles.looks_of` gives them.
Looks = Mapping[str, Mapping[str, Any]]

_WIDTH = 7.0  # inches, the text width of a paper
_BINS = 10
_FEW = 30  # questions that no mean is taken of alone
_PANELS_A_LINE = 2
_LOOK = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "scope",  # the same input gives the same file
}


def accuracy_by_question(rows: Sequence[Row], looks: Looks) -> str:
    """Indexed accuracy against the question's place in the prompt, one panel per budget."""
    by_size = sorted(rows, key=lambda row: (row.result.capacity or 0, row.result.window or 0))
    budgets = list(dict.fromkeys(_budget(row, rows) for row in by_size))
    columns = min(_PANELS_A_LINE, len(budgets))
    lines = math.ceil(len(budgets) / columns)
    with mpl.rc_context(_LOOK):
        figure = Figure(figsize=(_WIDTH, 0.9 + 2.6 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flat
        for budget, axes in zip_longest(budgets, panels):
            if budget is None:
                axes.remove()
                continue
            for row in rows:
                if _budget(row, rows) == budget:
                    places, accuracy = _binned(row.score.by_index)
                    axes.plot(
                        places,
                        accuracy,
                        label=_plain(row.name),
                        linewidth=1.4,
                        **looks[row.name],
                    )
            axes.set_title(budget or ("no budget" if len(budgets) > 1 else ""), fontsize=9)
            axes.set_xlabel("question in the prompt")
            axes.set_ylim(0, 100)
            if axes.get_subplotspec().is_first_col():
                axes.set_ylabel("indexed accuracy (%)")
        _legend(figure)
        return _svg(figure)


def accuracy_by_memory(rows: Sequence[Row], looks: Looks) -> str | None:
    """Indexed accuracy against KV bytes per sequence, a line per method through its budgets.

    None where no row has the bytes on record.
    """
    rows = [row for row in rows if row.kv_mib is not None]
    if not rows:
        return None
    with mpl.rc_context(_LOOK):
        figure = Figure(figsize=(_WIDTH, 4.2), layout="constrained")
        axes = figure.subplots()
        front = _pareto([(row.kv_mib, row.accuracy.mean) for row in rows])
        axes.step(*zip(*front, strict=True), where="post", color="#BBBBBB", label="Pareto front")
        for name in dict.fromkeys(row.name for row in rows):
            ours = (row for row in rows if row.name == name)
            members = sorted(ours, key=attrgetter("kv_mib"))
            means = np.array([row.accuracy.mean for row in members])
            intervals = np.array(
                [row.accuracy.interval or [row.accuracy.mean] * 2 for row in members]
            )
            axes.errorbar(
                [row.kv_mib for row in members],
                means,
                yerr=[means - intervals[:, 0], intervals[:, 1] - means],
                label=_plain(name),
                linewidth=0.8,
                elinewidth=0.8,
                capsize=2,
                **looks[name],
            )
        axes.set_xlabel("KV cache per sequence (MiB)")
        axes.set_ylabel("indexed accuracy (%)")
        _legend(figure)
        return _svg(figure)


def differences(panels: Mapping[str, Sequence[Row]], looks: Looks) -> str | None:
    """Indexed accuracy minus the baseline's, a line for each row and a panel for each title.

    None where nothing was compared.
    """
    compared = {
        title: [row for row in rows if row.difference is not None] for title, rows in panels.items()
    }
    compared = {title: rows for title, rows in compared.items() if rows}
    if not compared:
        return None
    sizes = [len(rows) for rows in compared.values()]
    with mpl.rc_context(_LOOK):
        height = 0.5 + 0.5 * len(sizes) + 0.19 * sum(sizes)
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        drawn = figure.subplots(len(sizes), sharex=True, squeeze=False, height_ratios=sizes).flat
        for axes, (title, rows) in zip(drawn, compared.items(), strict=True):
            ordered = sorted(rows, key=lambda row: row.difference.mean)
            for place, row in enumerate(ordered):
                mean, interval = row.difference.mean, row.difference.interval
                reach = [] if interval is None else [[mean - interval[0]], [interval[1] - mean]]
                style = {**looks[row.name], "linestyle": "none"}
                axes.errorbar([mean], [place], xerr=reach or None, elinewidth=0.8, **style)
            axes.axvline(0, color="black", linewidth=0.8)
            axes.set_yticks(range(len(rows)), [_label(row, rows) for row in ordered], fontsize=8)
            axes.set_ylim(-0.6, len(rows) - 0.4)
            axes.set_title(_plain(title), fontsize=9, loc="left")
        axes.set_xlabel("indexed accuracy minus the baseline's (points)")
        return _svg(figure)


def agreement_by_distance(rows: Sequence[Row], looks: Looks) -> str | None:
    """Tokens that the full cache would choose too, against the distance from the prompt.

    None where no row was compared.
    """
    rows = [row for row in rows if row.equal_by_distance]
    if not rows:
        return None
    with mpl.rc_context(_LOOK):
        figure = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        for row in rows:
            distances, equal = zip(*row.equal_by_distance, strict=True)
            _curve(axes, looks, row, rows, distances, equal)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("tokens from the end of the prompt")
        axes.set_ylabel("equal tokens (%)")
        _legend(figure)
        return _svg(figure)


def accuracy_by_lines_back(rows: Sequence[Row], looks: Looks) -> str | None:
    """Indexed accuracy by how long ago the output had written what a line needs.

    Distances up to each power of two are taken together, and the furthest, of few questions, with
    those before them. None where no task tells them.
    """
    rows = [row for row in rows if row.score.by_lines_back]
    if not rows:
        return None
    with mpl.rc_context(_LOOK):
        figure = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        for row in rows:
            back, accuracy, count = np.array(row.score.by_lines_back).T
            octave = np.ceil(np.log2(back)).astype(int)
            often = np.flatnonzero(np.bincount(octave, count) >= _FEW)
            octave = octave.clip(max=often.max(initial=0))
            weights = np.bincount(octave, count)
            places, right = (np.bincount(octave, count * part) for part in (back, accuracy))
            asked = weights > 0
            weights = weights[asked]
            _curve(axes, looks, row, rows, places[asked] / weights, right[asked] / weights)
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 100)
        axes.set_xlabel("lines since the output last wrote what a line needs")
        axes.set_ylabel("indexed accuracy (%)")
        _legend(figure)
        return _svg(figure)


def lengths(rows: Sequence[Row], looks: Looks) -> str:
    """How long the outputs are: tokens, or characters where tokens are not on record."""
    in_tokens = all(row.score.tokens is not None for row in rows)
    with mpl.rc_context(_LOOK):
        figure = Figure(figsize=(_WIDTH, 0.8 + 0.28 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            records = row.result.records
            values = [r.generated_tokens if in_tokens else len(r.pred) for r in records]
            colour = looks[row.name]["color"]
            axes.boxplot(
                values,
                positions=[place],
                orientation="horizontal",
                widths=0.6,
                patch_artist=True,
                boxprops={"facecolor": colour, "alpha": 0.35, "edgecolor": colour},
                medianprops={"color": colour, "linewidth": 1.8},
                whiskerprops={"color": colour},
                capprops={"color": colour},
                flierprops={"marker": ".", "markersize": 3, "markeredgecolor": colour},
            )
        axes.set_yticks(range(len(rows)), [_label(row, rows) for row in rows])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(left=0)
        axes.set_xlabel("tokens generated per prompt" if in_tokens else "characters per prompt")
        return _svg(figure)


def _curve(
    axes: Axes, looks: Looks, row: Row, rows: Sequence[Row], x: ArrayLike, shares: ArrayLike
) -> None:
    """A row's line through shares of 1, drawn in percent; a kind of line for each budget."""
    budgets = list(dict.fromkeys(_budget(other, rows) for other in rows))
    line = LINES[budgets.index(_budget(row, rows)) % len(LINES)]
    style = {"label": _label(row, rows), "linewidth": 1.4, "linestyle": line, **looks[row.name]}
    axes.plot(x, 100 * np.asarray(shares), **style)


def _label(row: Row, rows: Sequence[Row]) -> str:
    """The method's name, with its budget where the rows have several."""
    return ", ".join(filter(None, [_plain(row.name), _budget(row, rows)]))


def _plain(name: str) -> str:
    """As a label: matplotlib reads ``$`` as mathematics and leaves out what begins with ``_``."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def _budget(row: Row, rows: Sequence[Row]) -> str:
    """C and W, as far as it has them and the rows differ in them."""
    parts = []
    capacity, window = row.result.capacity, row.result.window
    if capacity is not None and len({other.result.capacity for other in rows}) > 1:
        parts.append(f"C {capacity}")
    if window is not None and len({other.result.window for other in rows}) > 1:
        parts.append(f"W {window}")
    return ", ".join(parts)


def _binned(by_index: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means over neighbouring questions, ``_BINS`` at most; places count from 1."""
    places = np.array_split(np.arange(len(by_index)), min(_BINS, len(by_index)))
    values = np.asarray(by_index)
    return [1 + float(p.mean()) for p in places], [100 * float(values[p].mean()) for p in places]


def _pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no cheaper point is as good as, by cost."""
    front: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or gain > front[-1][1]:
            front.append((cost, gain))
    return front


def _legend(figure: Figure) -> None:
    """One legend for all panels, below them."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    # A line of 7 inches holds about 80 characters beside the markers.
    columns = max(1, min(3, len(entries), 80 // (max(map(len, entries)) + 8)))
    lines = math.ceil(len(entries) / columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * max(lines - 3, 0))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
