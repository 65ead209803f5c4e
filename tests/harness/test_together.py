"""Data sets that decode in one batch get the files that they get alone."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scope.generation import session
from scope.harness import cli
from scope.harness.sweep import command
from tests.harness.running import instruction_file, one_error, result_files

Together = Callable[..., dict[str, bytes]]

GRID = """
dataset: [gsm8k, mmlu]
K: 2
method: ALLKV
decoding_metric: [None, slide]
decoding_window_size: 12
decoding_recent_size: 6
max_new_tokens: 20
batch_size: 9
device: cpu
"""


@pytest.fixture
def arguments(model_folder: Path, data_file: Path, tmp_path: Path) -> list[str]:
    """A grid of two methods on two data sets, five and three prompts."""
    lines = data_file.read_text().splitlines(keepends=True)
    letters = [line.replace("#### 1", "A").replace("#### 2", "B") for line in lines]
    for name, some in {"gsm8k": lines, "mmlu": letters[2:]}.items():
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        (folder / f"{name}_2.jsonl").write_text("".join(some))
    instruction_file(tmp_path).write_text(json.dumps({"gsm8k": "w1 w2", "mmlu": "w3"}))
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        f"{GRID}model_path: {model_folder}\ndata_dir: {tmp_path / 'data'}\n"
        f"instruction_file: {tmp_path / 'instruction.json'}\n"
    )
    return ["--config", str(grid)]


@pytest.fixture
def together(arguments: list[str], tmp_path: Path) -> Together:
    def call(name: str, *options: str) -> dict[str, bytes]:
        assert cli.main([*arguments, "--results_dir", str(tmp_path / name), *options]) == 0
        return result_files(tmp_path / name)

    return call


def runs_below(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("run.json"))]


def test_the_files_are_those_of_one_after_the_other(together: Together, tmp_path: Path) -> None:
    alone = together("alone")
    assert len(alone) == 4
    assert together("joined", "--together") == alone
    for own, joined in zip(
        runs_below(tmp_path / "alone"), runs_below(tmp_path / "joined"), strict=True
    ):
        [start] = joined["starts"]
        assert start["batch_size"] == 8
        assert own["starts"][0]["batch_size"] in (3, 5)
        assert start["tokens"] == own["starts"][0]["tokens"]
        assert start["work"]["prompts"] == 8
        assert {*start["beside"], joined["config"]["dataset"]} == {"gsm8k", "mmlu"}
        assert joined["metrics"]["seconds"] == start["seconds"] > 0
        assert joined["config_hash"] == own["config_hash"]
        for held in ("kv_bytes_per_sequence", "kv_bytes_read_per_step"):
            assert joined["metrics"][held] == own["metrics"][held]


def test_what_one_has_finished_is_not_done_again(
    together: Together, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = together("joined", "--together")
    for name, file in (("gsm8k", 2), ("mmlu", 1)):  # lines that are left of each
        for path in (tmp_path / "joined").rglob(f"{name}/ALLKV.json"):
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:file]))
    sizes, read = [], []

    class Seen(session.Session):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            sizes.append((self.batch_size, len(self.prompts)))

        def admit(self, row: int, index: int) -> Any:
            read.append(index)
            return super().admit(row, index)

    monkeypatch.setattr("scope.harness.generating.Session", Seen)
    assert together("joined", "--together") == whole
    assert sizes == [(8, 8), (8, 8)]
    assert read == 2 * [2, 3, 4, 6, 7]
    assert together("joined", "--together") == whole
    assert len(sizes) == 2, "nothing is loaded where all is there"


def test_a_data_set_that_is_there_keeps_its_part_of_the_slots(
    together: Together, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = together("joined", "--together", "--decoding_metric", "slide")
    [path] = (tmp_path / "joined").rglob("mmlu/ALLKV.json")
    path.unlink()
    files = {file: file.read_bytes() for file in (tmp_path / "joined").rglob("gsm8k/*.json")}
    assert together("joined", "--together", "--decoding_metric", "slide") == whole
    assert files == {file: file.read_bytes() for file in files}
    *_, start = json.loads(path.with_name("run.json").read_text())["starts"]
    assert "beside" not in start
    assert start["batch_size"] == 8


def test_in_a_sweep(together: Together, arguments: list[str], tmp_path: Path) -> None:
    alone = together("alone", "--compare_with", "full")
    options = ["--together", "--compare_with", "full", "--results_dir", str(tmp_path / "swept")]
    assert command.main([arguments[1], *options]) == 0
    assert result_files(tmp_path / "swept") == alone
    for run in runs_below(tmp_path / "swept"):
        assert ("agreement" in run["metrics"]) == ("slide" in run["label"])


@pytest.mark.parametrize("entry", [cli.main, command.main], ids=["run", "sweep"])
def test_what_one_is_compared_with_is_there_first(
    entry: Callable[[list[str]], int], arguments: list[str], tmp_path: Path
) -> None:
    grid = tmp_path / "grid.yaml"
    runs = [
        {"dataset": "mmlu", "decoding_metric": "slide"},
        {"dataset": "gsm8k", "decoding_metric": "None"},
        {"dataset": "gsm8k", "decoding_metric": "slide", "compare_with": "full"},
        {"dataset": "mmlu", "decoding_metric": "None"},
    ]
    lines = grid.read_text().splitlines()
    shared = [line for line in lines if not line.startswith(("dataset:", "decoding_metric:"))]
    grid.write_text("\n".join([*shared, f"runs: {json.dumps(runs)}"]))
    given = arguments if entry is cli.main else arguments[1:]
    assert entry([*given, "--together", "--results_dir", str(tmp_path / "results")]) == 0
    found = {
        (run["config"]["dataset"], run["config"]["decoding_metric"]): run
        for run in runs_below(tmp_path / "results")
    }
    assert "agreement" in found["gsm8k", "slide"]["metrics"]
    assert "beside" not in found["gsm8k", "slide"]["starts"][0]
    assert found["gsm8k", "None"]["starts"][0]["beside"] == ["mmlu"]


def test_what_one_of_a_unit_is_compared_with_may_be_there_already(
    arguments: list[str], tmp_path: Path
) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(grid.read_text().replace("[gsm8k, mmlu]", "gsm8k").replace("[None, ", "["))
    sweep, first = [arguments[1], "--together"], str(tmp_path / "first")
    assert command.main([*sweep, "--save_dir", first]) == 0
    [reference] = Path(first).rglob("gsm8k/ALLKV.json")
    second = {"save_dir": str(tmp_path / "second"), "compare_with": str(reference)}
    with grid.open("a") as file:
        file.write(f"runs: {json.dumps([second, {'save_dir': first}])}")
    assert command.main(sweep) == 0
    assert "agreement" in runs_below(tmp_path / "second")[0]["metrics"]


def test_units_of_a_sweep(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command.main([arguments[1], "--together", "--dry_run"]) == 0
    plan = capsys.readouterr().out
    assert "0/1: 2 units" in plan
    assert "ALLKV+slide (current) on gsm8k, mmlu" in plan


def test_a_plan_tells_how_many_fit_into_the_common_batch(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*arguments, "--together", "--dry_run"]) == 0
    plan = capsys.readouterr().out
    alone = [int(n) for n in re.findall(r"at most (\d+) sequences fit on cpu beside", plan)]
    common = [int(n) for n in re.findall(r"gsm8k, mmlu in one batch: at most (\d+) seq", plan)]
    assert len(alone) == 4
    # As many as of the data set with the longest prompts.
    assert common == [min(pair) for pair in zip(alone[::2], alone[1::2], strict=True)]


@pytest.mark.parametrize(
    ("entry", "option", "words"),
    [
        (command.main, ["--slice", "2"], "--slice cuts data sets, and --together joins them"),
        (cli.main, ["--tensor_parallel"], "--together does not go with --tensor_parallel"),
    ],
    ids=["slice", "tensor_parallel"],
)
def test_what_does_not_go_with_it(
    entry: Callable[[list[str]], int],
    option: list[str],
    words: str,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = arguments if entry is cli.main else arguments[1:]
    assert words in one_error(entry([*given, "--together", *option]), capsys.readouterr().err)
