"""Runs that draw their tokens: several texts a prompt, each the same however it comes about."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scope.evaluation.evaluate import evaluate
from scope.evaluation.indexed import score
from scope.evaluation.results import find_result_folders, read_dataset
from tests.harness.running import Run, one_error, read

DEMONSTRATION = "Question_1:\n1?\n\nAnswer_1:\n1\n\nFollowing Question: \n"
DRAWN: dict[str, Any] = {"temperature": 1.5, "num_samples": 3, "max_num_examples": 3}


def test_several_texts_of_every_prompt(run: Run) -> None:
    whole = run("whole", **DRAWN) / "H2O.json"
    records = read(whole)
    assert [(r["index"], r["sample"]) for r in records] == [
        (i, n) for i in range(3) for n in range(3)
    ]
    assert len({tuple(record["generated_ids"]) for record in records}) == 9
    lines = whole.read_bytes()
    for name, options in {"alone": {"batch_size": 1}, "many": {"batch_size": 9}}.items():
        assert (run(name, **DRAWN, **options) / "H2O.json").read_bytes() == lines
    other = read(run("other", **DRAWN, seed=1) / "H2O.json")
    assert [r["generated_ids"] for r in other] != [r["generated_ids"] for r in records]


def test_goes_on_text_by_text(run: Run) -> None:
    whole = (run("whole", **DRAWN) / "H2O.json").read_bytes()
    lines = whole.splitlines(keepends=True)
    folder = run(**DRAWN | {"num_samples": 1})
    assert (folder / "H2O.json").read_bytes() == lines[0] + lines[3] + lines[6]
    run(**DRAWN)
    assert (folder / "H2O.json").read_bytes() == whole
    (folder / "H2O.json").write_bytes(lines[4] + lines[0] + lines[8][:20])
    run(**DRAWN)
    assert (folder / "H2O.json").read_bytes() == whole
    assert json.loads((folder / "run.json").read_text())["data"]["rows"] == [0, 1, 2]


def test_greedy_runs_know_nothing_of_it(run: Run) -> None:
    folder = run()
    assert "sample" not in read(folder / "H2O.json")[0]
    assert (
        not {"temperature", "num_samples"}
        & json.loads((folder / "run.json").read_text())["config"].keys()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 2}, "--num_samples is 2, and at temperature 0 nothing is drawn;"),
        ({"top_p": 0.9}, "--top_p is 0.9, and at temperature 0 nothing is drawn;"),
        ({"temperature": -1}, "--temperature is -1.0; it must be a number from 0 on"),
        ({"temperature": "nan"}, "--temperature is nan; it must be a number from 0 on"),
        ({"temperature": 1, "top_p": 0}, "--top_p is 0.0; it must be above 0, and at most 1"),
        ({"temperature": 1, "top_k": -1}, "--top_k is -1; it must be at least 0"),
    ],
)
def test_bad_options(
    options: dict[str, Any], message: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError):
        run(**options)
    assert message in one_error(2, capsys.readouterr().err)


def test_pass_at_1_counts_problems_once(tmp_path: Path) -> None:
    """Of two problems one is solved by one of four texts, the other by all."""
    folder = tmp_path / "H2O+slide" / "model_8" / "gsm8k"
    folder.mkdir(parents=True)
    right = {0: [1], 1: [0, 1, 2, 3]}
    with (folder / "H2O.json").open("w") as file:
        for index, sample in np.ndindex(2, 4):
            answer = "7" if sample in right[index] else "8"
            record = {
                "prompt": f"{DEMONSTRATION}Question_2:\n{index}?",
                "questions": [f"q{index}"],
                "answers": ["#### 7"],
                "pred": f"Answer_2:\nThe answer is {answer}.",
                "index": index,
                "sample": sample,
            }
            file.write(json.dumps(record) + "\n")
    [found] = find_result_folders(tmp_path)
    assert score(read_dataset(found, "gsm8k")).accuracies == (0.25, 1.0)
    [row] = evaluate([found]).rows
    assert row.accuracy.mean == 62.5
    assert row.accuracy.interval == (25.0, 100.0)  # of problems, of which there are two
    assert Counter(record.index for record in row.result.records) == {0: 4, 1: 4}
