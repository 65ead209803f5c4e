"""report.md and report.html: the same tables and pictures, once for a repository, once for reading.

report.html needs no other file. report.md shows the pictures that lie in ``figures/`` beside it.
"""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template

from scope.errors import ScopeError
from scope.evaluation import figures
from scope.evaluation.evaluate import Evaluation, Row
from scope.evaluation.overview import overviews
from scope.evaluation.styles import looks_of
from scope.evaluation.tables import Column, full_columns

_NOT_IN_LINKS = re.compile(r"[^\w.+-]+")
_TITLE = "LongGenBench results"
_NOTES = (
    "Scores are accuracies in percent, averaged over prompts. Upstream compares the i-th answer "
    "that can be read with the i-th gold answer, as the published figures do. Indexed looks each "
    "answer up by its printed number. Lenient does the same, and takes an option letter or a "
    "number also where the asked-for phrase is missing.",
    "In brackets: {confidence:g} % intervals from 10,000 bootstrap resamples of whole prompts; "
    "differences to the baseline are paired by prompt. With few prompts the intervals are too "
    "narrow.",
    "Equal: tokens that the full cache would choose too, where each run is forced along the full "
    "cache's own text; KL: the mean divergence of the predictions there, in nats.",
    "Answered: questions with an answer that can be read by its number; right of answered: the "
    "share of these that is right. In format: with an answer that the upstream score can read. "
    "Repeated: 8-word sequences that the same output had before. Length: the mean per prompt. At "
    "limit: outputs that were cut off at the largest length.",
)


@dataclass(frozen=True)
class _Picture:
    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class _Section:
    """A table, if it has columns, and the pictures that go with it."""

    title: str
    columns: Sequence[Column]
    pictures: Sequence[_Picture]


def write_report(evaluation: Evaluation, out: Path) -> Path:
    """Writes report.md, report.html and figures/*.svg into ``out``; returns report.html.

    Raises:
        ScopeError: ``out`` cannot be written.
    """
    notes = [note.format(confidence=evaluation.confidence) for note in _NOTES]
    sections = list(_sections(evaluation.rows))
    problems = [*evaluation.errors, *evaluation.warnings]
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for section in sections:
            for picture in section.pictures:
                (out / "figures" / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
        (out / "report.md").write_text(_markdown(notes, sections, problems), encoding="utf-8")
        (out / "report.html").write_text(_html(notes, sections, problems), encoding="utf-8")
    except OSError as error:
        raise ScopeError(f"--report {out}: {error.strerror}; choose another folder") from None
    return out / "report.html"


def _sections(rows: Sequence[Row]) -> Iterator[_Section]:
    """The published layout and all differences first, then each data set on its own."""
    for overview in overviews(rows):
        yield _Section(overview.title, overview.columns, [])

    looks = looks_of(row.name for row in rows)

    def group(row: Row) -> tuple[str, int, str]:
        return row.result.dataset, row.result.questions, row.result.model

    def order(row: Row) -> tuple[str, int, int]:
        return row.name.lower(), row.result.capacity or 0, row.result.window or 0

    by_data = {
        key: sorted(members, key=order)
        for key, members in groupby(sorted(rows, key=group), key=group)
    }
    differences = figures.differences(
        {
            f"{data}, {questions} questions a prompt\n{model}": chosen
            for (data, questions, model), chosen in by_data.items()
        },
        looks,
    )
    if differences is not None:
        caption = "Differences to the baseline, paired by prompt, with their intervals."
        yield _Section("Differences", [], [_Picture("differences", caption, differences)])
    for (dataset, questions, model), chosen in by_data.items():
        pictures = _pictures(
            _NOT_IN_LINKS.sub("_", f"{dataset}_{questions}_{model}"), chosen, looks
        )
        title = f"{dataset}, {questions} questions a prompt, {model}"
        yield _Section(title, full_columns(chosen), pictures)


def _pictures(prefix: str, rows: Sequence[Row], looks: figures.Looks) -> list[_Picture]:
    captions: Mapping[str, tuple[str, str | None]] = {
        "questions": (
            "Indexed accuracy against the question's place in the prompt (means of neighbours).",
            figures.accuracy_by_question(rows, looks),
        ),
        "back": (
            "Indexed accuracy by how many lines ago the output had last written what a line needs; "
            "distances up to each power of two together.",
            figures.accuracy_by_lines_back(rows, looks),
        ),
        "memory": (
            "Indexed accuracy against the KV cache of one sequence, with its intervals. "
            "A method's line joins its budgets; the grey steps are the Pareto front.",
            figures.accuracy_by_memory(rows, looks),
        ),
        "agreement": (
            "Share of tokens that the full cache would choose too, along its own text.",
            figures.agreement_by_distance(rows, looks),
        ),
        "lengths": (
            "Length of the outputs: median, quartiles, 1.5 interquartile ranges, outliers.",
            figures.lengths(rows, looks),
        ),
    }
    return [
        _Picture(f"{prefix}_{name}", caption, svg)
        for name, (caption, svg) in captions.items()
        if svg is not None
    ]


def _markdown(notes: Sequence[str], sections: Sequence[_Section], problems: Sequence[str]) -> str:
    parts = [f"# {_TITLE}", *notes]
    if problems:
        parts.append("**Problems**\n\n" + "\n".join(f"- {_plain(problem)}" for problem in problems))
    for section in sections:
        parts.append(f"## {_plain(section.title)}")
        if section.columns:
            header = [column.title for column in section.columns]
            rule = [":--" if column.is_text else "--:" for column in section.columns]
            rows = zip(*(column.cells for column in section.columns), strict=True)
            parts.append(
                "\n".join(f"| {' | '.join(map(_plain, row))} |" for row in [header, rule, *rows])
            )
        parts += [f"![{p.name}](figures/{p.name}.svg)\n\n{p.caption}" for p in section.pictures]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """One line of Markdown that shows a text as it is, in a table too."""
    line = " ".join(escape(text, quote=False).split())
    return re.sub(r"([\\`|])", r"\\\1", line)


def _html(notes: Sequence[str], sections: Sequence[_Section], problems: Sequence[str]) -> str:
    parts = [f"<h1>{_TITLE}</h1>", *(f"<p>{escape(note)}</p>" for note in notes)]
    if problems:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
        parts.append(f'<div class="problems"><strong>Problems</strong><ul>{items}</ul></div>')
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        if section.columns:
            parts.append(_html_table(section.columns))
        for picture in section.pictures:
            data = base64.b64encode(picture.svg.encode()).decode()
            parts.append(
                f'<figure><img alt="{escape(picture.caption)}" '
                f'src="data:image/svg+xml;base64,{data}">'
                f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
            )
    page = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return page.substitute(title=_TITLE, body="\n".join(parts))


def _html_table(columns: Sequence[Column]) -> str:
    def line(tag: str, texts: Sequence[str]) -> str:
        cells = []
        for column, text in zip(columns, texts, strict=True):
            place = ' class="text"' if column.is_text else ""
            cells.append(f"<{tag}{place}>{escape(text)}</{tag}>")
        return f"<tr>{''.join(cells)}</tr>"

    head = line("th", [column.title for column in columns])
    rows = zip(*(column.cells for column in columns), strict=True)
    body = "".join(line("td", row) for row in rows)
    return f'<div class="table"><table>{head}{body}</table></div>'
