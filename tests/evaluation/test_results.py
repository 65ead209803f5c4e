"""Result folders: found, read, compared, and nothing that looks wrong passed over."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eval_gen
from scope.errors import ScopeError
from scope.evaluation import indexed
from scope.evaluation.baseline import find_baseline
from scope.evaluation.evaluate import evaluate
from scope.evaluation.results import DatasetResult, find_result_folders, read_dataset
from scope.evaluation.statistics import Estimate, estimate, paired_differences, ratio

PROMPT = "Examples: \nQuestion_1:\n1 + 1?\n\nAnswer_1:\n2\n\nFollowing Question: \nQuestion_2:\n..."


def record(row: int, right: int, **extra: Any) -> dict[str, Any]:
    """Four questions numbered 2 to 5, the first ``right`` of them answered rightly."""
    said = [f"Answer_{2 + i}:\nThe answer is {7 if i < right else 8}." for i in range(4)]
    return {
        "prompt": f"{PROMPT}{row}",
        "questions": [f"{row}.{i}?" for i in range(4)],
        "answers": ["so\n#### 7"] * 4,
        "length": 100,
        "pred": "\n\n".join(said),
        **extra,
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes records as a result folder and returns its path."""

    def write(
        records: list[Any], name: str = "H2O+slide", dataset: str = "gsm8k", **run: Any
    ) -> Path:
        folder = tmp_path / f"{name}_decoding_window_16_recent_window_4" / "tiny_64"
        file = folder / dataset / f"{name.partition('+')[0]}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = (r if isinstance(r, str) else json.dumps(r) for r in records)
        text = "".join(f"{line}\n" for line in lines)
        file.write_text(text, encoding="utf-8", errors="surrogateescape")
        if run:
            file.with_name("run.json").write_text(json.dumps(run))
        return folder

    return write


def test_results_csv_in_the_originals_form(write: Callable[..., Path]) -> None:
    folder = write([record(0, 4), record(1, 3), record(2, 3)])
    assert eval_gen.main(["--results_dir", str(folder)]) == 0
    expected = b"dataset,gsm8k,mmlu,csqa\r\nH2O+slide,83.3333,-1,-1\r\n"
    assert (folder / "results.csv").read_bytes() == expected


def test_run_json_names_the_row_and_fills_the_table(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(
        [record(0, 2, index=0, generated_tokens=12, stopped="eos")],
        config={"method": "ALLKV", "decoding_metric": None, "decoding_window_size": 24},
        metrics={"kv_bytes_per_sequence": 3 << 20, "tokens_per_second": 12.34},
    )
    assert eval_gen.main(["--results_dir", str(folder)]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "configuration"
    assert row.split() == [
        "ALLKV+None",
        "64",
        "24",
        "gsm8k",
        "1",
        "50.00",
        "50.00",
        "50.00",
        "100.0",
        "50.00",
        *("12", "tokens"),
        "0.0",
        "3.00",
        "12.3",
    ]
    assert "ALLKV+None,50.0,-1,-1" in (folder / "results.csv").read_text()


def test_format_and_knowledge_come_apart(write: Callable[..., Path]) -> None:
    """Half of the answers lack the phrase; of those that have it, half are right."""
    said = [
        "The answer is 7.",
        "The answer is 8.",
        "So we add.\nThat gives 7 in all.",
        "Who knows?\n",
    ]
    pred = "\n\n".join(f"Answer_{2 + i}:\n{text}" for i, text in enumerate(said))
    lines = [
        record(i, 0, index=i, pred=pred, stopped=end) for i, end in enumerate(("eos", "length"))
    ]
    [row] = evaluate(find_result_folders(write(lines))).rows
    assert (row.score.answered, row.score.lenient_answered) == (0.5, 0.75)
    assert (row.accuracy.mean, row.lenient.mean, row.upstream.mean) == (25, 50, 25)
    assert row.right_of_answered.mean == 50
    assert row.score.at_the_limit == 0.5


def test_right_of_answered_is_over_answers_and_not_over_prompts() -> None:
    few = ratio([1, 0], [1, 9])
    assert few is not None
    assert (few.mean, few.interval) == (10, (0, 100))
    assert ratio([2], [4]) == Estimate(50, None)
    assert ratio([0, 0], [0, 0]) is None


def test_a_parent_folder_scores_all_below_it(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write([record(0, 4)], name="ALLKV+None")
    write([record(0, 1)], name="H2O+h2o")
    write(
        [record(0, 2)],
        name="H2O+h2o",
        dataset="own",
        config={"method": "H2O", "decoding_metric": "h2o"},
    )
    assert eval_gen.main(["--results_dir", str(tmp_path)]) == 0
    assert len(list(tmp_path.rglob("results.csv"))) == 2
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3


@pytest.mark.parametrize(
    ("bad_line", "message"),
    [
        ('{"prompt": "half a li', "gsm8k/H2O.json:2: not a complete JSON line"),
        ('"\udcff"', "gsm8k/H2O.json:2: not a complete JSON line"),
        ("", "gsm8k/H2O.json:2: not a complete JSON line"),
        ("[]", "gsm8k/H2O.json:2: not a JSON object"),
        ({**record(1, 1), "pred": None}, "gsm8k/H2O.json:2: key 'pred' is missing or not a str"),
        ({**record(1, 1), "answers": []}, "gsm8k/H2O.json:2: key 'answers' is not"),
        ({**record(1, 1), "answers": ["####"]}, "gsm8k/H2O.json:2: the gold answer '####'"),
        ({**record(1, 1), "prompt": "Hi"}, "gsm8k/H2O.json:2: the prompt has no 'Question_"),
        (record(1, 1, index="one"), "gsm8k/H2O.json:2: key 'index' is not a whole number"),
        (record(0, 4), "gsm8k/H2O.json:2: the same example as line 1"),
    ],
)
def test_a_broken_line_is_a_warning_and_the_rest_is_scored(
    write: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bad_line: Any,
    message: str,
) -> None:
    broken = write([record(0, 4), bad_line])
    whole = write([record(0, 4)], name="ALLKV+None")
    assert eval_gen.main(["--results_dir", str(tmp_path)]) == 0
    output = capsys.readouterr()
    warnings = output.err.strip().splitlines()
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: not scored: ")
    assert message in warnings[0]
    assert not (broken / "results.csv").exists()
    assert (whole / "results.csv").exists()
    assert "ALLKV+None" in output.out
    assert "H2O+slide" not in output.out


def test_answers_of_another_data_set(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write([record(0, 4)], dataset="recall")
    assert eval_gen.main(["--results_dir", str(folder)]) == 2
    assert "H2O.json:1: not answers as the data set recall has them" in capsys.readouterr().err


def test_missing_rows_are_told(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(
        [record(i, 4, index=i) for i in (4, 1, 0)],
        config={"method": "H2O", "decoding_metric": "slide"},
        data={"rows": list(range(8))},
    )
    assert eval_gen.main(["--results_dir", str(folder)]) == 0
    assert "H2O.json: rows 2-3, 5-7 of the data file are missing" in capsys.readouterr().err


def test_the_order_of_lines_changes_nothing(write: Callable[..., Path]) -> None:
    """A run that goes on writes its examples as they end."""
    lines = [record(i, i % 5, index=i, generated_tokens=9 + i, stopped="eos") for i in range(6)]
    baseline = write([record(i, 2, index=i) for i in range(6)], name="ALLKV+None")
    figures = []
    for order in (range(6), (5, 4, 3, 2, 1, 0), (2, 0, 5, 1, 4, 3)):
        folders = find_result_folders(write([lines[i] for i in order]))
        [row] = evaluate(folders, find_baseline(str(baseline), folders)).rows
        assert [r.index for r in row.result.records] == list(range(6))
        csv = (folders[0].path / "results.csv").read_bytes()
        figures.append((row.score, row.accuracy, row.difference, csv))
    assert figures[0] == figures[1] == figures[2]


@pytest.mark.parametrize("content", [None, "other/file.json"])
def test_no_results_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    if content:
        (tmp_path / content).parent.mkdir()
        (tmp_path / content).write_text("{}")
    assert eval_gen.main(["--results_dir", str(tmp_path / ("" if content else "missing"))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


def test_indexed_score_and_diagnostics(write: Callable[..., Path]) -> None:
    late = record(0, 4, index=0, generated_tokens=10, stopped="eos")
    late["pred"] = "Answer_5:\nThe answer is $7.00.\nAnswer_3:\n**7**\nAnswer_6:\nThe answer is 7."
    (folder,) = find_result_folders(
        write([late, record(1, 3, index=1, generated_tokens=20, stopped="length")])
    )
    score = indexed.score(read_dataset(folder, "gsm8k"))
    assert score.accuracies == (0.5, 0.75)
    assert score.by_index == (0.5, 1.0, 0.5, 0.5)
    assert score.answered == 6 / 8
    assert score.formatted == 4 / 8
    assert score.tokens == 15
    assert score.stopped == {"eos": 1, "length": 1}
    assert indexed.repetition("a b c d e f g h " * 3) == pytest.approx(9 / 17)


def test_accuracy_by_lines_back(write: Callable[..., Path], tmp_path: Path) -> None:
    questions = ["1. fox: ? + 1 = ?", "2. fox: ? + 2 = ?", "3. owl: ? + 4 = ?", "4. fox: ? + 5 = ?"]
    exam = {"questions": questions, "answers": ["fox: 1", "fox: 3", "owl: 4", "fox: 8"]}
    right = "1. fox: 0 + 1 = 1\n2. fox: 1 + 2 = 3\n3. owl: 0 + 4 = 4\n"
    rows = [
        {"prompt": f"{last}", "length": 9, "pred": right + last, **exam}
        for last in ("4. fox: 3 + 5 = 8", "4. fox: 4 + 5 = 9")
    ]
    folder = write(rows, dataset="ledger")
    [result] = find_result_folders(folder)
    score = indexed.score(read_dataset(result, "ledger"))
    assert score.by_lines_back == ((1, 1.0, 2), (2, 0.5, 2))
    out = tmp_path / "report"
    assert eval_gen.main(["--results_dir", str(folder), "--report", str(out)]) == 0
    assert (out / "figures" / "ledger_4_tiny_back.svg").exists()


def test_intervals_cover_the_mean_and_narrow_with_more_prompts() -> None:
    few = estimate([0.2, 0.4, 0.6, 0.8] * 2)
    many = estimate([0.2, 0.4, 0.6, 0.8] * 32)
    assert few.mean == many.mean == pytest.approx(50)
    assert few.interval is not None
    assert many.interval is not None
    assert few.interval[0] < many.interval[0] < 50 < many.interval[1] < few.interval[1]
    half_width = (many.interval[1] - many.interval[0]) / 2
    spread = 100 * np.std([0.2, 0.4, 0.6, 0.8])
    assert half_width == pytest.approx(1.96 * spread / np.sqrt(128), rel=0.05)
    assert estimate([0.5]).interval is None
    assert estimate([0.5, 0.5]).interval == (50, 50)


def test_paired_differences_are_narrower_than_the_scores(write: Callable[..., Path]) -> None:
    """Prompts differ much, the two runs by one answer in each prompt: pairing sees only that."""
    base = write([record(i, 1 + i % 4) for i in range(12)], name="ALLKV+None")
    other = write([record(i, i % 4) for i in reversed(range(12))])
    ours, theirs = (read_dataset(find_result_folders(p)[0], "gsm8k") for p in (other, base))
    difference = paired_differences(ours, theirs).accuracy
    assert difference.mean == pytest.approx(-25)
    assert difference.interval == pytest.approx((-25, -25))


def test_what_is_right_of_the_answered_is_paired_too(write: Callable[..., Path]) -> None:
    """One run is silent where the other is wrong: less accurate, and of what it says more is."""

    def said(row: int, answers: int) -> str:
        return record(row, 2)["pred"].partition(f"Answer_{2 + answers}")[0]

    base = write([record(i, 2) for i in range(8)], name="ALLKV+None")
    other = write([record(i, 2, pred=said(i, 1 + i % 2)) for i in range(8)])
    mute = write([record(i, 2, pred="") for i in range(8)], name="H2O+None")
    theirs, ours, silent = (
        read_dataset(find_result_folders(p)[0], "gsm8k") for p in (base, other, mute)
    )
    differences = paired_differences(ours, theirs)
    assert differences.accuracy.mean == pytest.approx(-12.5)
    assert differences.right_of_answered == Estimate(50, (50, 50))
    assert paired_differences(silent, theirs).right_of_answered is None


def test_intervals_of_another_confidence(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write([record(i, i % 5) for i in range(20)])

    def widths(*options: str) -> list[float]:
        out = tmp_path / "report"
        arguments = ["--results_dir", str(folder), "--report", str(out), *options]
        assert eval_gen.main(arguments) == 0
        assert (
            f"In brackets: {(options or ('', '95'))[1]} % intervals"
            in (out / "report.md").read_text()
        )
        found = re.findall(r"\[(.*?), (.*?)\]", capsys.readouterr().out)
        return [float(high) - float(low) for low, high in found]

    usual, wide = widths(), widths("--confidence", "99.3")
    assert len(usual) == len(wide) == 4
    assert all(b > a for a, b in zip(usual, wide, strict=True))
    for odd in ("0", "100", "much"):
        with pytest.raises(SystemExit, match="2"):
            eval_gen.main(["--results_dir", str(folder), "--confidence", odd])


def test_a_baseline_by_name_is_that_of_the_same_window(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(label: str, right: int, window: int | None = None) -> None:
        config = {"method": "ALLKV", "decoding_window_size": window}
        lines = [record(i, right, index=i) for i in range(2)]
        folder = write(lines, name=f"{label}_{window}", config=config, label=label)
        folder.parent.rename(tmp_path / f"{label}_{window}")

    run("ALLKV+None", 4)
    run("ALLKV+slide (current)", 1, 512)
    run("ALLKV+slide (current)", 1, 1024)
    run("ALLKV+slide (random)", 2, 512)
    run("ALLKV+slide (random)", 3, 1024)
    folders = find_result_folders(tmp_path)

    def minus(name: str) -> dict[tuple[str, int | None], float | None]:
        rows = evaluate(folders, find_baseline(name, folders)).rows
        return {
            (row.name.partition("(")[2], row.result.window): row.difference and row.difference.mean
            for row in rows
        }

    assert minus("ALLKV+slide (random)") == {
        ("", None): None,  # the full cache could be compared with either
        ("current)", 512): -25,
        ("current)", 1024): -50,
        ("random)", 512): 0,
        ("random)", 1024): 0,
    }
    assert minus("ALLKV+None")["random)", 512] == -50
    assert eval_gen.main(["--results_dir", str(tmp_path), "--baseline", "chance"]) == 2
    error = capsys.readouterr().err
    assert "--baseline chance is no folder and none of the results: ALLKV+None, ALLKV+sl" in error


def test_another_data_file_than_the_baselines_is_refused(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write([record(i, 4) for i in (0, 1)], name="ALLKV+None")
    write([record(i, 4) for i in (0, 7)])
    assert eval_gen.main(["--results_dir", str(tmp_path), "--baseline", str(base)]) == 2
    output = capsys.readouterr()
    assert "gsm8k/H2O.json:2: these questions are not in the baseline" in output.err
    assert "H2O+slide" in output.out  # its own score is still told

    def with_hash(name: str, sha256: str | None) -> DatasetResult:
        folder = write([record(0, 1)], name, data={"sha256": sha256})
        return read_dataset(find_result_folders(folder)[0], "gsm8k")

    with pytest.raises(ScopeError, match="made from another data file"):
        paired_differences(with_hash("A+None", "aaa"), with_hash("B+None", "bbb"))
    for other in ("aaa", None):
        assert (
            paired_differences(with_hash("A+None", "aaa"), with_hash("B+None", other)).accuracy.mean
            == 0
        )


def test_a_difference_over_some_of_the_prompts_is_told(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write([record(i, 4) for i in range(3)], name="ALLKV+None")
    write([record(i, 3) for i in (2, 0)])
    assert eval_gen.main(["--results_dir", str(tmp_path), "--baseline", str(base)]) == 0
    output = capsys.readouterr()
    assert "-25.00 [-25.0, -25.0]" in output.out
    assert "H2O.json: 2 prompts, and 3 in the baseline" in output.err


def test_baseline_must_be_one_folder(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write([record(0, 1)], name="A+None")
    write([record(0, 1)], name="B+None")
    assert eval_gen.main(["--results_dir", str(tmp_path), "--baseline", str(tmp_path)]) == 2
    assert "holds 2 result folders" in capsys.readouterr().err


def test_report_holds_every_row_picture_and_problem(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"method": "H2O", "decoding_metric": "slide"}
    write(
        [record(i, 2, index=i, generated_tokens=9) for i in range(3)],
        config=config,
        metrics={
            "kv_bytes_per_sequence": 1 << 20,
            "tokens_per_second": 5.0,
            "agreement": {
                "by_prompt": [[8, 0.5, 0.1], [8, 0.75, 0.1], [8, 1.0, 0.1]],
                "by_distance": [[1, 1, 3, 1.0, 0.0], [2, 2, 3, 0.5, 0.2]],
            },
        },
        data={"rows": list(range(4))},
    )
    base = write([record(i, 3) for i in range(3)], name="ALLKV+None")
    write(["broken"], name="B+None")
    out = tmp_path / "report"
    arguments = ["--results_dir", str(tmp_path), "--baseline", str(base), "--report", str(out)]
    assert eval_gen.main(arguments) == 0
    capsys.readouterr()

    markdown = (out / "report.md").read_text()
    html = (out / "report.html").read_text()
    figures = sorted(path.stem for path in (out / "figures").iterdir())
    names = ("agreement", "lengths", "memory", "questions")
    assert figures == ["differences", *(f"gsm8k_4_tiny_{name}" for name in names)]
    for figure in figures:
        assert f"(figures/{figure}.svg)" in markdown
    assert html.count("data:image/svg+xml;base64,") == 5
    assert 'src="http' not in html
    for text in (
        "H2O+slide",
        "ALLKV+None",
        "-25.00 [-25.0, -25.0]",
        "75.00 [50.0, 100.0]",
        "rows 3 of",
        "B.json:1: not",
    ):
        assert text in markdown
        assert text in html
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1


def test_scores_and_budgets_of_one_strategy_come_apart(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    agreement = {"by_prompt": [[8, 0.5, 0.1]], "by_distance": [[1, 1, 3, 1.0, 0.0]]}
    for window in (16, 32):
        for score in ("cumulative", "random"):
            sizes = {"decoding_window_size": window}
            config = {"method": "H2O", "decoding_metric": "slide", "decoding_score": score, **sizes}
            write(
                [record(0, 2, index=0)],
                name=f"H2O+{score}{window}",
                config=config,
                metrics={"agreement": agreement},
            )
    out = tmp_path / "report"
    assert eval_gen.main(["--results_dir", str(tmp_path), "--report", str(out)]) == 0
    svg = (out / "figures" / "gsm8k_4_tiny_agreement.svg").read_text()
    curves = set(re.findall(r"fill: none; ([^\"]*?)stroke: (#\w+); stroke-width: 1.4", svg))
    assert len(curves) == 4
    assert len({line for line, _ in curves}) == len({colour for _, colour in curves}) == 2


def test_the_full_cache_is_found_and_the_published_layout_shown(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are methods, columns data sets by window; each fidelity has a full cache of its own."""

    def run(label: str, folder: str, right: int, dataset: str = "gsm8k", **sizes: int) -> None:
        config = {"method": folder.partition("+")[0], "decoding_metric": None, **sizes}
        lines = [record(i, right, index=i) for i in range(2)]
        if dataset == "csqa":
            lines = [
                {**line, "answers": ["A", "B", "A", "B"], "pred": "Answer_2: (A) Answer_3: (B)"}
                for line in lines
            ]
        held = {"gsm8k": 3 << 20, "csqa": 2 << 20}[dataset]
        metrics = {"kv_bytes_per_sequence": held} if "decoding_window_size" in sizes else {}
        write(lines, name=folder, dataset=dataset, config=config, label=label, metrics=metrics)

    run("ALLKV+None", "ALLKV+None", 3)
    run("ALLKV+None", "ALLKV+None", 3, dataset="csqa")
    run("ALLKV+None (upstream)", "ALLKV+None_up", 2)
    run("H2O+slide (current)", "H2O+slide", 1, decoding_window_size=512)
    run("H2O+slide (current)", "H2O+slide", 1, dataset="csqa", decoding_window_size=512)
    run("H2O+slide (current)", "H2O+slide_1024", 4, decoding_window_size=1024)
    run("H2O+slide (current, upstream)", "H2O+slide_up", 1, decoding_window_size=512)
    out = tmp_path / "report"
    arguments = ["--results_dir", str(tmp_path), "--baseline", "full", "--report", str(out)]
    assert eval_gen.main(arguments) == 0
    capsys.readouterr()
    _, *tables = (out / "report.md").read_text().split("\n## ")
    assert [table.partition("\n")[0] for table in tables[:4]] == [
        f"K 4, tiny: {mark}"
        for mark in ("indexed", "lenient", "upstream", "indexed, minus the baseline")
    ]

    def cells(table: str) -> list[list[str]]:
        lines = [line for line in table.splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]

    names = ["gsm8k, W 512", "csqa, W 512", "mean, W 512", "KV MiB, W 512"]
    names += ["gsm8k, W 1024", "csqa, W 1024", "mean, W 1024", "KV MiB, W 1024"]
    head, _, *rows = cells(tables[0])
    assert head == ["method", "C", *names]
    full, same = "75.00 [75.0, 75.0]", "50.00 [50.0, 50.0]"
    low, high = "25.00 [25.0, 25.0]", "100.00 [100.0, 100.0]"
    assert rows == [
        ["ALLKV+None", "64", full, same, "62.50", "–", full, same, "62.50", "–"],
        ["ALLKV+None (upstream)", "64", same, "–", "–", "–", same, "–", "–", "–"],
        ["H2O+slide (current)", "64", low, same, "37.50", "2.50", high, "–", "–", "–"],
        ["H2O+slide (current, upstream)", "64", low, "–", "–", "–", "–", "–", "–", "–"],
    ]
    minus = {row[0]: row[2] for row in cells(tables[3])[2:]}
    assert minus["H2O+slide (current)"] == "-50.00 [-50.0, -50.0]"
    assert minus["H2O+slide (current, upstream)"] == "-25.00 [-25.0, -25.0]"


def test_no_full_cache_is_told(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write([record(0, 2)])
    assert eval_gen.main(["--results_dir", str(folder), "--baseline", "full"]) == 2
    assert "error: --baseline full: no ALLKV+None" in capsys.readouterr().err


def test_a_report_is_the_same_every_time(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write([record(i, i) for i in range(4)])
    for name in ("one", "two"):
        eval_gen.main(["--results_dir", str(folder), "--report", str(tmp_path / name)])
    for file in (tmp_path / "one").rglob("*.*"):
        assert (
            file.read_bytes()
            == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()
        )


def test_recall_is_scored_by_record_number(tmp_path: Path) -> None:
    gold = ["K7 falcon 3 NONE 3", "K8 planet 4 X7 7", "K9 guitar 9 X7 2"]
    folder = tmp_path / "run" / "tiny_131" / "recall"
    folder.mkdir(parents=True)
    record = {
        "prompt": "K8 planet 4 X7 K7 falcon 3 NONE RECALL K7",
        "questions": ["K7 falcon 3 NONE", "K8 planet 4 X7", "K9 guitar 9 X7"],
        "answers": gold,
        "pred": "falcon 3 NONE 3 K9 guitar 9 X7 1",
    }
    (folder / "H2O.json").write_text(json.dumps(record) + "\n")
    config = {"method": "H2O", "decoding_metric": "slide", "decoding_score": "cumulative"}
    (folder / "run.json").write_text(json.dumps({"config": config}))
    [row] = evaluate(find_result_folders(tmp_path)).rows
    assert row.name == "H2O+slide (cumulative)"
    assert row.score.upstream is None
    assert row.score.by_index == (1.0, 0.0, 0.0)
    assert row.score.answered == pytest.approx(2 / 3)
    assert (tmp_path / "run" / "tiny_131" / "results.csv").read_bytes() == (
        b"dataset,gsm8k,mmlu,csqa,recall\r\nH2O+slide (cumulative),-1,-1,-1,33.3333\r\n"
    )


LABELLED = {"config": {"method": "H2O", "decoding_metric": "slide"}, "label": "H2O+slide (own)"}
HUGE = 10**400


@pytest.mark.parametrize(
    "content",
    [
        "null",
        "[]",
        "3",
        "{",
        "[" * 100_000,
        *(json.dumps({key: odd}) for key in ("config", "data", "metrics", "label")
          for odd in (None, [], 7, HUGE, float("nan"), {"x": None})),
        json.dumps({"config": {"method": [], "decoding_metric": 3, "max_capacity_prompt": HUGE}}),
        json.dumps({"config": {"method": "a\nb\ud800", "decoding_window_size": "W"}}),
        json.dumps({"data": {"rows": ["0", None], "sha256": 5}}),
        json.dumps({"metrics": {"kv_bytes_per_sequence": -1, "tokens_per_second": float("inf")}}),
        json.dumps({"metrics": {"kv_bytes_per_sequence": HUGE, "agreement": [1]}}),
        json.dumps({"metrics": {"agreement": {"by_prompt": [["x", 2]], "by_distance": [[], 2]}}}),
        json.dumps({"metrics": {"agreement": {"by_prompt": [[], []], "by_distance": [[1], [2]]}}}),
        json.dumps({"label": "_$a$ $b_"}),
    ],
    ids=lambda content: content[:40],
)  # fmt: skip
def test_an_odd_run_json_costs_no_row(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    folder = write([record(0, 2)])
    (folder / "gsm8k" / "run.json").write_text(content)
    arguments = ["--results_dir", str(folder), "--baseline", str(folder)]
    assert eval_gen.main([*arguments, "--report", str(tmp_path / "report")]) == 0
    table = capsys.readouterr().out.splitlines()
    assert "50.00" in table[1]


def test_a_stray_file_beside_the_result(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write([record(0, 2)], **LABELLED)
    (folder / "gsm8k" / "notes.json").write_text(json.dumps(record(1, 4)) + "\n")
    (folder / "csqa").mkdir()
    (folder / "csqa" / "H2O.json").write_text("{}\n")
    assert eval_gen.main(["--results_dir", str(folder)]) == 0
    output = capsys.readouterr()
    assert "H2O+slide (own)" in output.out
    assert "notes.json" in output.err
    assert "csqa/H2O.json:1: key 'prompt' is missing" in output.err
    assert "H2O+slide (own),50.0,-1,-1" in (folder / "results.csv").read_text()


def test_nothing_that_can_be_scored(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert eval_gen.main(["--results_dir", str(write(["broken"]))]) == 2
    assert "error: nothing could be scored" in capsys.readouterr().err


def test_a_table_where_results_csv_cannot_be_written(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write([record(0, 2)])
    (folder / "results.csv").mkdir()
    assert eval_gen.main(["--results_dir", str(folder)]) == 0
    output = capsys.readouterr()
    assert "50.00" in output.out
    assert "warning: " in output.err
    assert "results.csv: cannot be written" in output.err


def test_each_data_set_is_labelled_by_its_own_run(write: Callable[..., Path]) -> None:
    config = {"method": "H2O", "decoding_metric": "slide", "max_capacity_prompt": 32}
    write([record(0, 2)], config=config)
    folder = write([record(0, 2)], dataset="own", **LABELLED)
    rows = evaluate(find_result_folders(folder)).rows
    assert [(row.name, row.result.capacity) for row in rows] == [
        ("H2O+slide", 32),
        ("H2O+slide (own)", 64),
    ]
    assert ",50.0,-1,-1,50.0" in (folder / "results.csv").read_text()


def test_a_folder_of_a_method_without_capacity(write: Callable[..., Path]) -> None:
    folder = write([record(0, 2)])
    [row] = evaluate(find_result_folders(folder.rename(folder.with_name("tiny_full")))).rows
    assert (row.result.model, row.result.capacity) == ("tiny", None)


def test_a_distant_row_is_no_long_list(write: Callable[..., Path]) -> None:
    [row] = evaluate(find_result_folders(write([record(0, 2, index=10**15)]))).rows
    assert row.result.missing == [(0, 10**15 - 1)]


def test_report_shows_names_as_they_are(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write([record(0, 2)], label="a|b `c` <i>d</i>\n# e")
    eval_gen.main(["--results_dir", str(folder), "--report", str(tmp_path / "report")])
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert r"a\|b \`c\` &lt;i&gt;d&lt;/i&gt; # e" in markdown
