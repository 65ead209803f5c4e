"""Runs of which two processes share the model."""

import subprocess
import sys
from pathlib import Path

import pytest

from scope import ScopeError
from scope.harness.cli import main
from scope.harness.command_line import parse_command
from scope.harness.jobs import jobs_of
from scope.harness.ranks import check_splittable
from tests.harness.running import arguments_of, one_error, result_files

ROOT = Path(__file__).parents[2]


def torchrun(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "run_longgenbench.py", "--tensor_parallel", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_two_processes_write_what_one_writes(
    model_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    assert main(arguments_of(model_folder, data_file, tmp_path / "one")) == 0
    whole = result_files(tmp_path / "one")
    options = arguments_of(model_folder, data_file, tmp_path / "two")
    assert main([*options, "--max_num_examples", "1"]) == 0  # it goes on from here
    process = torchrun(*options)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("H2O+slide") == 1
    assert result_files(tmp_path / "two") == whole
    assert not list(tmp_path.rglob("*.lock"))


def test_outside_torchrun(
    model_folder: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([*arguments_of(model_folder, data_file, tmp_path), "--tensor_parallel"])
    assert "torchrun --nproc_per_node N" in one_error(code, capsys.readouterr().err)


SLIDE = (
    "--decoding_metric",
    "slide",
    "--decoding_window_size",
    "64",
    "--decoding_recent_size",
    "8",
)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--method", "ZigZagKV"), "the budget zigzag looks at all heads"),
        ((*SLIDE, "--share_heads", "true"), "share_heads looks at all heads"),
        ((*SLIDE, "--decoding_score", "fresh_random"), "the score fresh_random looks at all heads"),
        (("--decoding_metric", "refreshkv", "--threshold", "0.9"), "refreshkv with a threshold"),
        (("--decoding_metric", "refreshkv"), None),
        ((*SLIDE, "--decoding_score", "cumulative"), None),
    ],
)
def test_what_looks_at_all_heads_is_refused(options: tuple[str, ...], told: str | None) -> None:
    command = parse_command(["--model_path", "a", "--dataset", "gsm8k", *options])
    [job] = [job for run in command.runs for job in jobs_of(run)]
    if told is None:
        check_splittable(job)
    else:
        with pytest.raises(ScopeError, match=told):
            check_splittable(job)
