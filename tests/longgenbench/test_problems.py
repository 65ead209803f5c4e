r"""Problems with an answer in ``\boxed{}``: built from small local files, and marked."""

import json
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from scope.longgenbench.problems import main
from scope.tasks.boxed import last_box, value
from scope.tasks.registry import TASKS


class Exam(NamedTuple):
    prompt: str
    questions: list[str]
    answers: list[str]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("073", "73"),
        ("1,000", "1000"),
        ("\\frac{1}{2}", "0.5"),
        ("\\dfrac12", "1/2"),
        ("-\\frac{6}{4}", "-1.5"),
        ("$\\sqrt{2}$.", "\\sqrt{2}"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
        ("\\text{Evelyn}", "Evelyn"),
        ("90^\\circ", "90"),
        ("50\\%", "50"),
        ("x = 5", "5"),
        ("\\$ 12.50", "12.5"),
    ],
)
def test_the_same_answer(one: str, other: str) -> None:
    assert value(one) == value(other)


@pytest.mark.parametrize(
    ("one", "other"), [("1,2", "12"), ("12", "21"), ("1/0", "1"), ("x+1", "x-1"), ("", "0")]
)
def test_another_answer(one: str, other: str) -> None:
    assert value(one) != value(other)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("So \\boxed{1}. No: $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("\\boxed{7} and then \\boxed{8", "7"),
        ("The answer is 7.", None),
        ("\\boxed{}", ""),
    ],
)
def test_the_last_box_that_is_closed(text: str, box: str | None) -> None:
    assert last_box(text) == box


def test_marks_with_and_without_a_box() -> None:
    exam, task = Exam("p", ["p"], ["073"]), TASKS["aime25"]
    for pred, answered, right, leniently in [
        ("\\boxed{73}", True, True, True),
        ("It is 73. \\boxed{74}", True, False, False),
        ("It is 73.", False, False, True),
        ("No idea.", False, False, False),
    ]:
        marks, lenient = task.mark(exam, pred), task.mark_leniently(exam, pred)
        assert lenient is not None
        assert (marks.answered, marks.correct) == ((answered,), (right,))
        assert lenient.correct == (leniently,)


@pytest.mark.parametrize("text", ["\\boxed{", "\\boxed{1}", "{" * 99, "$ ", "9", "\\text{"])
def test_a_megabyte_takes_under_a_second(text: str) -> None:
    exam = Exam("p", ["p"], ["x"])
    start = time.process_time()
    for pred in (text * (1_000_000 // len(text)), "\\boxed{" + text * 100_000 + "}"):
        TASKS["math500"].mark(exam, pred)
        TASKS["math500"].mark_leniently(exam, pred)
    assert time.process_time() - start < 1


def test_a_local_file_is_built_and_differences_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "own.jsonl"
    source.write_text('{"question": "1 + 1?", "answer": 2}\n{"problem": "2?", "answer": "2"}\n')
    assert main(["aime25", "--source", str(source), "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().err
    assert "warning: 2 problems, and aime25 has 30" in told
    assert "own.jsonl is another file than the hub's, whose SHA-256 begins with b4e273c0" in told
    rows = [json.loads(line) for line in (tmp_path / "aime25_1.jsonl").read_text().splitlines()]
    assert rows[0] == {"prompt": "1 + 1?", "questions": ["1 + 1?"], "answers": ["2"]}
    assert json.loads((tmp_path / "aime25_1.meta.json").read_text())["source"]["files"] == (
        "own.jsonl"
    )


def test_bad_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "own.jsonl"
    for text, told in {
        '{"text": 1}\n': "own.jsonl, row 1: problem and answer were expected",
        "1\n": "own.jsonl, row 1: problem and answer were expected",
        "": "own.jsonl is empty",
        "{\n": "own.jsonl:1: not a JSON line",
    }.items():
        source.write_text(text)
        assert main(["math500", "--source", str(source), "--out", str(tmp_path)]) == 2
        assert told in capsys.readouterr().err
    assert main(["math500", "--source", str(tmp_path / "none")]) == 2
