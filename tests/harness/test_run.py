"""run_longgenbench.py from the outside: result files, resuming, and what it says of itself."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scope import Compression
from scope.harness.cli import main
from scope.harness.results import ResultFile
from scope.harness.summary import idle_compression
from tests.harness.running import FULL, Run, arguments_of, instruction_file, read

ROOT = Path(__file__).parents[2]


def test_records_and_run_file(run: Run, data_file: Path) -> None:
    folder = run()
    records = read(folder / "H2O.json")
    assert [record["index"] for record in records] == list(range(5))
    for record, row in zip(records, read(data_file), strict=True):
        assert record["questions"] == row["questions"]
        assert record["prompt"].endswith(row["prompt"])
        assert record["length"] == len(record["prompt"])
        assert record["generated_tokens"] == len(record["generated_ids"])
        cache = record["cache"]
        assert cache["prompt_kept"] == [24, 24]
        ended_early = record["stopped"] == "eos"
        assert ended_early or cache["decode_evicted"] == [39 - 12] * 2
        assert ended_early or cache["peak"] == [24 + 12 + 1] * 2
    described = json.loads((folder / "run.json").read_text())
    assert described["config"]["method"] == "H2O"
    assert described["config"]["decoding_metric"] == "slide"
    assert described["config"]["fidelity"]["causal_prefill_scores"] is True
    # Slots x layers x KV heads x head size x (K and V) x float32.
    assert described["metrics"]["kv_bytes_read_per_step"] == (24 + 12 + 1) * 2 * 2 * 8 * 2 * 4
    assert described["metrics"]["kv_bytes_per_sequence"] == (24 + 12 + 1) * 2 * 2 * 8 * 2 * 4
    assert described["data"]["rows"] == [0, 1, 2, 3, 4]
    assert described["warnings"] == []


@pytest.mark.parametrize(("kept", "warnings"), [([131, 60], 0), ([131, 131], 1)])
def test_a_layer_that_keeps_all_is_not_idle(kept: list[int], warnings: int) -> None:
    job = SimpleNamespace(compression=Compression("PyramidKV", max_capacity_prompt=98))
    cache = {"prompt_tokens": 131, "prompt_kept": kept, "decode_evicted": [1, 1]}
    assert len(idle_compression(job, [{"cache": cache}])) == warnings


def test_what_is_offloaded_is_counted_apart(run: Run) -> None:
    options = FULL | {"decoding_metric": "refreshkv", "working_set": 16, "stride": 4}
    kept, moved = (
        json.loads((run(str(where), **options, offload=where) / "run.json").read_text())["metrics"]
        for where in (False, True)
    )
    assert moved["kv_bytes_read_per_step"] == kept["kv_bytes_read_per_step"]
    in_both = moved["kv_bytes_per_sequence"] + moved["kv_bytes_on_host_per_sequence"]
    copies = 16 * 2 * 2 * 8 * 2 * 4
    assert in_both == kept["kv_bytes_per_sequence"] + copies
    assert "kv_bytes_on_host_per_sequence" not in kept


def test_batch_size_does_not_change_the_records(run: Run) -> None:
    alone = (run("alone", batch_size=1) / "H2O.json").read_text()
    assert (run("together", batch_size=5) / "H2O.json").read_text() == alone


def test_killed_and_started_again(
    run: Run, model_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    options = {"decoding_metric": "discontinuous", "max_new_tokens": 150}
    through = (run("through", **options) / "H2O.json").read_bytes()
    result = tmp_path / "killed" / "tiny-llama_24" / "gsm8k" / "H2O.json"
    arguments = arguments_of(model_folder, data_file, tmp_path / "killed", **options)
    command = [sys.executable, ROOT / "run_longgenbench.py", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while not (result.exists() and result.stat().st_size > 0):
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert result.read_bytes().count(b"\n") < 5
    assert (run("killed", **options) / "H2O.json").read_bytes() == through


def test_half_written_line_is_done_again(run: Run) -> None:
    result = run() / "H2O.json"
    whole = result.read_bytes()
    lines = whole.splitlines(keepends=True)
    result.write_bytes(lines[3] + lines[1] + lines[2][:40])
    run()
    assert result.read_bytes() == whole
    metrics = json.loads(result.with_name("run.json").read_text())["metrics"]
    tokens = [json.loads(line)["generated_tokens"] for line in lines]
    assert metrics["generated_tokens"] == sum(tokens) + tokens[0] + tokens[2] + tokens[4]


def test_killed_before_the_lines_were_put_in_order(run: Run) -> None:
    result = run() / "H2O.json"
    whole = result.read_bytes()
    result.write_bytes(b"".join(reversed(whole.splitlines(keepends=True))))
    result.with_suffix(".tmp").write_bytes(whole[:100])
    run()
    assert result.read_bytes() == whole


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((0, 2, 0), "line 3: holds example 0 again"),
        ((2, 4), "line 2: holds example 4, which is not to be run"),
    ],
)
def test_line_of_another_example_stops_with_its_number(
    rows: tuple[int, ...], message: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(drop_rows=4) / "H2O.json"
    lines = (run("all") / "H2O.json").read_bytes().splitlines(keepends=True)
    result.write_bytes(b"".join(lines[row] for row in rows))
    with pytest.raises(AssertionError):
        run(drop_rows=4)
    assert message in capsys.readouterr().err


def test_lines_come_as_examples_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so a run that is killed has lost nothing that was finished."""
    through = (run("through", max_new_tokens=150) / "H2O.json").read_bytes()
    appended, append = [], ResultFile.append

    def noted(file: ResultFile, record: dict[str, Any]) -> None:
        append(file, record)
        appended.append(record["index"])
        assert [record["index"] for record in file.records()] == appended

    monkeypatch.setattr(ResultFile, "append", noted)
    assert (run("again", max_new_tokens=150) / "H2O.json").read_bytes() == through
    assert sorted(appended) == [0, 1, 2, 3, 4] != appended


def test_finished_run_is_left_alone(run: Run) -> None:
    folder = run()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("H2O.json")}
    described = json.loads((folder / "run.json").read_text())
    described["starts"][0]["versions"]["torch"] = "of the day it ran"
    (folder / "run.json").write_text(json.dumps(described))
    run()
    assert {path: path.stat().st_mtime_ns for path in folder.glob("H2O.json")} == before
    assert json.loads((folder / "run.json").read_text()) == described


def test_without_git(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    described = json.loads((run() / "run.json").read_text())
    assert described["starts"][0]["versions"]["git_commit"] is None


def test_killed_before_the_metrics_were_written(run: Run) -> None:
    file = run() / "run.json"
    described = json.loads(file.read_text())
    summary = described.pop("metrics")
    file.write_text(json.dumps(described))
    run()
    metrics = json.loads(file.read_text())["metrics"]
    assert metrics == {key: summary[key] for key in metrics}
    assert metrics["mean_prompt_kept"] == 24


def test_broken_line_stops_with_its_number(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = run() / "H2O.json"
    lines = result.read_bytes().splitlines(keepends=True)
    result.write_bytes(lines[0] + b"{broken\n" + lines[2])
    with pytest.raises(AssertionError):
        run()
    assert "H2O.json, line 2" in capsys.readouterr().err
    assert result.read_bytes() == lines[0] + b"{broken\n" + lines[2]


def test_folder_of_another_configuration(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = run() / "H2O.json"
    before = result.read_bytes()
    with pytest.raises(AssertionError):
        run(decoding_recent_size=5)
    error = capsys.readouterr().err
    assert "another configuration, with another decoding_recent_size" in error
    assert result.read_bytes() == before


def test_compression_that_never_acts_is_said(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    model_folder: Path,
    data_file: Path,
    tmp_path: Path,
) -> None:
    run("idle", max_new_tokens=8, max_num_examples=3)
    assert "slide evicted nothing in 3 of 3 examples" in capsys.readouterr().err
    options = {"max_capacity_prompts": 50, "max_num_examples": 4}
    arguments = arguments_of(model_folder, data_file, tmp_path / "whole", **options)
    assert main(arguments) == 0
    # With the instruction the prompts have 44 to 52 tokens.
    assert "H2O kept all of the prompt in 4 of 4 examples" in capsys.readouterr().err


def test_closeness_to_the_full_cache(run: Run) -> None:
    full = run("full", **FULL) / "ALLKV.json"
    same = run("same", **FULL, compare_with=full)
    agreement = json.loads((same / "run.json").read_text())["metrics"]["agreement"]
    tokens = sum(record["generated_tokens"] - 1 for record in read(full))
    assert agreement["tokens"] == tokens
    assert agreement["equal_tokens"] == 1.0
    assert agreement["mean_kl"] == 0.0  # both decode by the same steps
    compressed = run("compressed", compare_with=full)
    agreement = json.loads((compressed / "run.json").read_text())["metrics"]["agreement"]
    assert agreement["mean_kl"] > 1e-3
    for parts in (agreement["by_prompt"], agreement["by_distance"]):
        counts, equal, kl = np.array(parts)[:, -3:].T
        assert counts.sum() == tokens
        assert counts @ equal == pytest.approx(tokens * agreement["equal_tokens"])
        assert counts @ kl == pytest.approx(tokens * agreement["mean_kl"])
    firsts, lasts = zip(*(part[:2] for part in agreement["by_distance"]), strict=True)
    assert firsts == (1, *(last + 1 for last in lasts[:-1]))


def test_a_grid_is_compared_with_its_own_full_cache(
    model_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "runs.yaml"
    config.write_text(
        f"""
        model_path: {model_folder}
        data_file: {data_file}
        results_dir: {tmp_path / "runs"}
        max_new_tokens: 20
        max_num_examples: 2
        device: cpu
        compare_with: full
        decoding_window_size: 8
        decoding_recent_size: 4
        runs:
          - {{method: ALLKV, decoding_metric: None}}
          - {{method: ALLKV, decoding_metric: slide}}
        """
    )
    assert main(["--config", str(config)]) == 0
    full, slide = (
        json.loads(path.read_text()) for path in sorted((tmp_path / "runs").rglob("run.json"))
    )
    assert "agreement" not in full["metrics"]
    compared = slide["metrics"]["agreement"]
    assert compared["equal_tokens"] < 1
    assert Path(compared["compared_with"]).parents[2].name.startswith("ALLKV+None_data_file")


def test_runs_of_a_yaml_file(
    model_folder: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "runs.yaml"
    config.write_text(
        f"""
        model_path: {model_folder}
        data_file: {data_file}
        instruction_file: {instruction_file(tmp_path)}
        max_capacity_prompts: 24
        decoding_window_size: 12
        decoding_recent_size: 6
        max_new_tokens: 16
        max_num_examples: 4
        runs:
          - {{method: ALLKV, decoding_metric: None, save_dir: {tmp_path}/a}}
          - {{method: SnapKV, decoding_metric: adaptive, save_dir: {tmp_path}/b,
              fidelity.adaptive_window: uncapped}}
        """
    )
    assert main(["--config", str(config), "--max_num_examples", "2"]) == 0
    table = capsys.readouterr().out
    assert "ALLKV+None" in table
    assert "SnapKV+adaptive" in table
    folder = tmp_path / "b" / "tiny-llama_24" / "gsm8k"
    assert len(read(folder / "SnapKV.json")) == 2
    fidelity = json.loads((folder / "run.json").read_text())["config"]["fidelity"]
    assert fidelity["adaptive_window"] == "uncapped"


def test_dry_run_needs_no_weights(
    model_folder: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "Tiny-Llama"
    bare.mkdir()
    for file in model_folder.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    arguments = arguments_of(bare, data_file, tmp_path / "out", method="PyramidKV")
    assert main([*arguments, "--dry_run"]) == 0
    plan = capsys.readouterr().out
    # C - w = 16 over two layers with beta 20: 32 and 0, and the window of 8 in both.
    assert "per layer: 40 8" in plan
    assert "per layer and head: 53 21" in plan
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("storage", "slots"),
    [
        ({}, "per head: 74 for all layers together"),
        ({"pruned_channels": "0.4"}, "per layer and head: "),
    ],
)
def test_dry_run_tells_what_layers_keep_on_average(
    storage: dict[str, str],
    slots: str,
    model_folder: Path,
    data_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = arguments_of(model_folder, data_file, tmp_path, method="ZigZagKV", **storage)
    assert main([*arguments, "--dry_run"]) == 0
    plan = capsys.readouterr().out
    assert ", at most 24 on average\n" in plan
    assert slots in plan
