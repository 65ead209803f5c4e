"""The rows of a data file, and how many questions each prompt asks."""

import json
from pathlib import Path
from typing import Any

from scope.errors import ScopeError
from scope.longgenbench.build import read_meta


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a data file: JSON lines with prompt, questions and answers.

    Raises:
        ScopeError: no such file, or a line that is not such a row, with its number.
    """
    try:
        # Not splitlines(): some questions hold characters that it takes for line ends.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise ScopeError(
            f"data file {path}: {error.strerror}; build it with "
            "scripts/scripts_longgenbench/create_*.sh or name one with --data_file"
        ) from None
    except UnicodeDecodeError as error:
        raise ScopeError(f"data file {path}: not UTF-8 text ({error.reason})") from None
    if lines == [""]:
        raise ScopeError(f"data file {path} is empty; expected JSON lines")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ScopeError(f"data file {path}, line {number}: not JSON ({error})") from None
        if not (
            isinstance(row, dict)
            and isinstance(row.get("prompt"), str)
            and isinstance(row.get("questions"), list)
            and isinstance(row.get("answers"), list)
            and row["answers"]
            and all(isinstance(answer, str) for answer in row["answers"])
        ):
            raise ScopeError(
                f"data file {path}, line {number}: expected a JSON object with the text prompt and "
                "the lists questions and answers, of which answers holds one text or more"
            )
        rows.append(row)
    return rows


def questions_per_prompt(path: Path, dataset: str, expected: int | None = None) -> int:
    """K of a data file: as the note beside it says, or else that of its longest prompt.

    Args:
        path: the data file.
        dataset: which one it is to be.
        expected: K as it was asked for, if it was.

    Raises:
        ScopeError: the file is of another data set or K, or its note is another file's.
    """
    counts = [len(row["answers"]) for row in read_rows(path)]
    note = read_meta(path) or {}
    built_of = note.get("dataset", dataset)
    if built_of != dataset:
        raise ScopeError(
            f"data file {path}, line 1: built of {built_of}, as the note beside it says, and not "
            f"of {dataset}; give --dataset {built_of} or another file"
        )
    own = note.get("k", max(counts))
    for line, count in enumerate(counts, start=1):
        if "k" in note and count != own:
            raise ScopeError(
                f"data file {path}, line {line}: {count} questions, and {own!r} in the note beside "
                "it; build the file again, or delete the note"
            )
        if expected not in (None, own) and count != expected:
            raise ScopeError(
                f"data file {path}, line {line}: {count} questions, and not the {expected} that "
                "--K asks for; leave --K out or give another file"
            )
    return own
