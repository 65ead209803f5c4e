"""Sweeps: units, slices and shards give the files of one process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scope.harness import cli
from scope.harness.sweep.command import main
from tests.harness.running import instruction_file, one_error, result_files

Sweep = Callable[..., dict[str, bytes]]

GRID = """
method: [H2O, SnapKV]
decoding_metric: [slide, adaptive]
max_capacity_prompts: 24
decoding_window_size: 12
decoding_recent_size: 6
max_new_tokens: 20
batch_size: 2
device: cpu
exclude: [SnapKV+adaptive*]
"""


@pytest.fixture
def grid(model_folder: Path, data_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(
        f"{GRID}model_path: {model_folder}\ndata_file: {data_file}\n"
        f"instruction_file: {instruction_file(tmp_path)}\n"
    )
    return path


@pytest.fixture
def sweep(grid: Path, tmp_path: Path) -> Sweep:
    def call(name: str, *options: str) -> dict[str, bytes]:
        assert main([str(grid), "--results_dir", str(tmp_path / name), *options]) == 0
        return result_files(tmp_path / name)

    return call


@pytest.fixture
def whole(grid: Path, tmp_path: Path) -> dict[str, bytes]:
    options = ["--config", str(grid), "--results_dir", str(tmp_path / "whole")]
    assert cli.main(options) == 0
    files = result_files(tmp_path / "whole")
    assert len(files) == 3
    return files


def test_one_process(whole: dict[str, bytes], sweep: Sweep) -> None:
    assert sweep("one") == whole
    assert sweep("sliced", "--slice", "2") == whole
    assert sweep("sliced", "--slice", "2") == whole  # nothing is done again


def test_shards(whole: dict[str, bytes], sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    shards = [sweep("sharded", "--slice", "2", "--shard", f"{index}/3") for index in range(3)]
    assert len(shards[0]) == 3
    assert shards[2] == whole
    for index in range(3):  # as an array that is put in the queue again
        assert sweep("sharded", "--slice", "2", "--shard", f"{index}/3") == whole
    capsys.readouterr()
    sweep("planned", "--slice", "2", "--shard", "0/3", "--dry_run")
    plan = capsys.readouterr().out
    assert [line for line in plan.splitlines() if "units" in line] == [
        f"{index}/3: 3 units" for index in range(3)
    ]
    assert plan.count("H2O+slide (current) on gsm8k, examples 2 to 3") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "3/3"], "--shard: '3/3'; expected i/n"),
        (["--slice", "0"], "--slice: '0'; expected a whole number"),
        (["--slise", "2"], "unrecognized arguments: --slise"),
    ],
)
def test_bad_options(
    options: list[str], message: str, grid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([str(grid), *options])
    assert message in one_error(code, capsys.readouterr().err)
