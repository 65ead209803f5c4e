"""MMLU: exam questions of 57 subjects, four options (https://arxiv.org/abs/2009.03300).

A prompt holds questions of one subject. The published files have faults, which `write_upstream`
repeats byte for byte and `write` does not:

- a question with a blank line inside is cut there, and the pieces count as questions, so that
  later gold answers stand beside questions that are not theirs;
- options stand without a space between them, and options such as ``None`` or ``NA`` become ``nan``;
- demonstrations lose the text of option D;
- the subject is not named.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from scope.errors import ScopeError
from scope.tasks import sources
from scope.tasks.choices import ChoiceTask
from scope.tasks.sources import Hub, Item, Row, Source

_PUBLISHED_DEMONSTRATIONS = 5


class MMLU(ChoiceTask):
    """Read from the hub, or from the folder of ``<subject>_test.csv`` files that its site has."""

    name = "mmlu"
    letters = "ABCD"
    is_published = True
    published_drops = (21, 30, 31, 48)  # their prefill scores did not fit in memory
    hub = Hub("cais/mmlu", "all", "test", "c30699e8356da336a370243923dbaf21066bb9fe")

    def item(self, row: Row) -> Item:
        return Item(row["question"], self.letters[row["answer"]], tuple(row["choices"]))

    def read(self, source: Path | None) -> Source:
        """The items by subject; ``source`` is the folder of CSV files or its parent.

        Raises:
            ScopeError: the data cannot be had or is not in the expected form.
        """
        if source is not None:
            return self._read_folder(source)
        rows, origin = sources.read_hub(self.hub)
        by_subject: dict[str, list[Row]] = {}
        for row in rows:
            by_subject.setdefault(row["subject"], []).append(row)
        return Source(
            {name: self._items(by_subject[name], name) for name in sorted(by_subject)}, origin
        )

    def check_demonstrations(self, text: str, upstream: bool) -> None:
        if not upstream:
            super().check_demonstrations(text, upstream)
            return
        try:
            is_object = isinstance(json.loads(text), dict)
        except ValueError:
            is_object = False
        if not is_object:
            raise ScopeError("JSON by subject was expected")

    def write_upstream(
        self, demonstrations: str, subject: str, items: Sequence[Item]
    ) -> tuple[str, list[str]]:
        """As the published files; ``demonstrations`` is JSON, a text for each subject.

        Raises:
            ScopeError: it lacks the subject.
        """
        by_subject = json.loads(demonstrations)
        if subject not in by_subject:
            raise ScopeError(f"--prompt_path has no demonstrations for the subject {subject}")
        text = by_subject[subject]
        questions = re.findall(r"Q: (.*?\(D\))", text, re.DOTALL)
        answers = re.findall(r"A: (.*?The answer is \([A-Z]\))", text, re.DOTALL)
        worked = "".join((*_numbered("Question", questions), *_numbered("Answer", answers)))
        shown = "\n\n".join(map(_upstream_text, items)).split("\n\n")[: len(items)]
        return self.prompt(worked, shown, _PUBLISHED_DEMONSTRATIONS + 1), shown

    def _read_folder(self, folder: Path) -> Source:
        files = sorted(folder.glob("*_test.csv")) or sorted(folder.glob("test/*_test.csv"))
        if not files:
            raise ScopeError(f"--source {folder}: no <subject>_test.csv files, here or in test/")
        items = {file.stem.removesuffix("_test"): self._read_csv(file) for file in files}
        return Source(items, sources.local_origin(files))

    def _read_csv(self, file: Path) -> tuple[Item, ...]:
        try:
            with file.open(encoding="utf-8", newline="") as lines:
                rows = list(csv.reader(lines))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ScopeError(f"{file}: not a CSV file ({error})") from None
        for number, row in enumerate(rows, start=1):
            if len(row) != 6 or row[5] not in tuple(self.letters):
                raise ScopeError(
                    f"{file}, row {number}: question, four options and a letter were expected"
                )
        return tuple(Item(row[0], row[5], tuple(row[1:5])) for row in rows)


def _numbered(word: str, texts: Sequence[str]) -> Iterator[str]:
    for number, text in enumerate(texts, start=1):
        yield f"{word}_{number}:\n{text}\n\n"


def _upstream_text(item: Item) -> str:
    options = "".join(
        f"({letter}) {_as_pandas_reads(option)}"
        for letter, option in zip("ABCD", item.options, strict=True)
    )
    return f"{_as_pandas_reads(item.question)}\n{options}"


def _as_pandas_reads(cell: str) -> str:
    """pandas, which built the published files, takes these words for a missing value."""
    return "nan" if cell in {"", "NA", "N/A", "None", "NULL", "null", "NaN", "nan"} else cell
