"""How questions and demonstrations are written into a prompt.

Both styles share the format: ``Examples:``, all demonstration questions, all their answers,
``Following Question:``, the questions, numbered on from the demonstrations. For GSM8K and CSQA the
two differ in the demonstrations only. For MMLU ``upstream`` repeats the faults of the published
files, byte for byte, and ``fixed`` does not:

- a question with a blank line inside is cut there, and the pieces count as questions, so that
  later gold answers stand beside questions that are not theirs;
- options stand without a space between them, and options such as ``None`` or ``NA`` become ``nan``;
- demonstrations lose the text of option D;
- the subject is not named.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scope.errors import ScopeError
from scope.longgenbench.sources import Item

_DEMONSTRATIONS = Path(__file__).with_name("demonstrations")
_DEMONSTRATION_NUMBER = re.compile(r"^Question_(\d+):", re.MULTILINE)
_GAP = {"gsm8k": "", "mmlu": "", "csqa": "\n"}  # between two questions, as in the published files


class Style(Protocol):
    """Turns one prompt's items into its text and its list of questions."""

    def write(self, subject: str, items: Sequence[Item]) -> tuple[str, list[str]]: ...


@dataclass(frozen=True)
class Whole:
    """Every question whole; ``demonstrations`` is the text between the two headings."""

    dataset: str
    demonstrations: str

    def write(self, subject: str, items: Sequence[Item]) -> tuple[str, list[str]]:
        questions = [_with_options(item) for item in items]
        first = 1 + max(int(n) for n in _DEMONSTRATION_NUMBER.findall(self.demonstrations))
        head = f"Subject: {subject.replace('_', ' ')}\n\n" if subject else ""
        return head + _prompt(self.demonstrations, questions, first, _GAP[self.dataset]), questions


@dataclass(frozen=True)
class UpstreamMMLU:
    """The published MMLU files; ``demonstrations`` holds each subject's worked examples."""

    demonstrations: dict[str, str]

    def write(self, subject: str, items: Sequence[Item]) -> tuple[str, list[str]]:
        if subject not in self.demonstrations:
            raise ScopeError(f"--prompt_path has no demonstrations for the subject {subject}")
        text = self.demonstrations[subject]
        questions = re.findall(r"Q: (.*?\(D\))", text, re.DOTALL)
        answers = re.findall(r"A: (.*?The answer is \([A-Z]\))", text, re.DOTALL)
        demonstrations = "".join(_numbered("Question", questions)) + "".join(
            _numbered("Answer", answers)
        )
        shown = "\n\n".join(self._text(item) for item in items).split("\n\n")[: len(items)]
        return _prompt(demonstrations, shown, 6, _GAP["mmlu"]), shown

    @staticmethod
    def _text(item: Item) -> str:
        options = "".join(
            f"({letter}) {_as_pandas_reads(option)}"
            for letter, option in zip("ABCD", item.options, strict=True)
        )
        return f"{_as_pandas_reads(item.question)}\n{options}"


def load(style: str, dataset: str, prompt_path: Path | None) -> Style:
    """The style of that name with its demonstrations: ``prompt_path``'s, or else our own.

    Raises:
        ScopeError: the demonstrations are missing or not in the expected form.
    """
    if style == "upstream" and prompt_path is None:
        raise ScopeError(
            "--style upstream needs --prompt_path: the published demonstrations "
            "(text for gsm8k and csqa, JSON by subject for mmlu)"
        )
    path = prompt_path or _DEMONSTRATIONS / f"{dataset}.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScopeError(f"cannot read the demonstrations {path}: {error}") from None
    if style == "upstream" and dataset == "mmlu":
        try:
            return UpstreamMMLU(dict(json.loads(text)))
        except ValueError:
            raise ScopeError(f"--prompt_path {path}: JSON by subject was expected") from None
    if not _DEMONSTRATION_NUMBER.search(text):
        raise ScopeError(f"--prompt_path {path}: no 'Question_1:'; demonstrations were expected")
    return Whole(dataset, text.strip())


def _prompt(demonstrations: str, questions: Sequence[str], first: int, gap: str) -> str:
    blocks = "".join(f"Question_{n}:\n{q}\n{gap}" for n, q in enumerate(questions, start=first))
    return f"Examples: \n{demonstrations}\n\nFollowing Question: \n{blocks}\n"


def _numbered(word: str, texts: Sequence[str]) -> Iterator[str]:
    for number, text in enumerate(texts, start=1):
        yield f"{word}_{number}:\n{text}\n\n"


def _with_options(item: Item) -> str:
    if not item.options:
        return item.question
    options = " ".join(f"({chr(ord('A') + i)}) {text}" for i, text in enumerate(item.options))
    return f"{item.question}\n{options}"


def _as_pandas_reads(cell: str) -> str:
    """pandas, which built the published files, takes these words for a missing value."""
    return "nan" if cell in {"", "NA", "N/A", "None", "NULL", "null", "NaN", "nan"} else cell
