"""Every text as a row of a table."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import eval_gen


def write_results(tmp_path: Path) -> None:
    folder = tmp_path / "H2O+slide_decoding_window_16_recent_window_4" / "tiny_64" / "gsm8k"
    folder.mkdir(parents=True)
    with (folder / "H2O.json").open("w") as file:
        for row, sample, said in ((0, 0, "7"), (0, 1, "8"), (1, 0, "8")):
            record = {
                "prompt": f"Examples: \nFollowing Question: \nQuestion_1:\n{row}",
                "questions": [f"{row}?"],
                "answers": ["#### 7"],
                "pred": f"Answer_1:\nThe answer is {said}.",
                "index": row,
                "sample": sample,
            }
            file.write(json.dumps(record) + "\n")


def test_one_row_a_text(tmp_path: Path) -> None:
    write_results(tmp_path)
    assert eval_gen.main(["--results_dir", str(tmp_path)]) == 0
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [(row["index"], row["sample"], row["accuracy"], row["answers"]) for row in rows] == [
        (0, 0, 1.0, ["#### 7"]),
        (0, 1, 0.0, ["#### 7"]),
        (1, 0, 0.0, ["#### 7"]),
    ]
    assert {(row["configuration"], row["model"], row["dataset"]) for row in rows} == {
        ("H2O+slide", "tiny", "gsm8k")
    }
    assert rows[2]["pred"].endswith("is 8.")


def test_where_it_cannot_be_written_all_else_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(tmp_path)
    (tmp_path / "results.parquet").mkdir()  # in a folder that is read-only it is the same
    out = tmp_path / "report"
    assert eval_gen.main(["--results_dir", str(tmp_path), "--report", str(out)]) == 2
    printed, error = capsys.readouterr()
    assert "H2O+slide" in printed
    assert f"report: {out / 'report.html'}" in printed
    assert len(error.splitlines()) == 1
    assert error.startswith(f"error: {tmp_path / 'results.parquet'}: cannot be written (")
    assert "results.parquet: cannot be written" in (out / "report.md").read_text()
