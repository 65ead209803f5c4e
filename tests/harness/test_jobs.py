"""The constants of the published runner, and how single ones are overridden."""

import json
from pathlib import Path

import pytest

from scope import ScopeError
from scope.cache.schedule import Schedule
from scope.harness.command_line import parse_command
from scope.harness.jobs import Job, jobs_of

ROOT = Path(__file__).parents[2]


def jobs(*options: str) -> dict[str, Job]:
    command = parse_command(
        ["--model_path", "meta/Llama-3.1-8B-Instruct", "--device", "cpu", *options]
    )
    return {job.dataset: job for run in command.runs for job in jobs_of(run)}


def test_published_setting_4k() -> None:
    found = jobs("--fidelity", "upstream", "--method", "H2O", "--decoding_metric", "adaptive")
    assert list(found) == ["gsm8k", "mmlu", "csqa"]
    assert {name: job.max_new_tokens for name, job in found.items()} == {
        "gsm8k": 4096,
        "mmlu": 4096,
        "csqa": 7950,
    }
    assert found["csqa"].data_file == Path("data/LongGenBench/csqa/csqa_40.jsonl")
    assert found["mmlu"].drop_rows == (21, 30, 31, 48)
    assert found["gsm8k"].drop_rows == ()
    for job in found.values():
        assert job.dtype == "float16"
        assert job.min_new_tokens == 1
        assert job.prompt_style == "upstream"
        assert job.eos == "tokenizer"
        assert job.max_prompt_tokens == 130000
        assert job.compression.options["window_size"] == 8
        assert job.compression.options["decoding_recent_size"] == 256
    deltas = {
        name: job.compression.recipe(job.max_new_tokens).strategy.pace
        for name, job in found.items()
    }
    assert deltas == {"gsm8k": 15, "mmlu": 15, "csqa": 30}


@pytest.mark.parametrize(
    ("method", "window", "delta"),
    [("ALLKV", 1024, 5), ("H2O", 512, 15), ("SnapKV", 1024, 15), ("PyramidKV", 1024, 15)],
)
def test_published_delta(method: str, window: int, delta: int) -> None:
    options = ("--method", method, "--decoding_window_size", str(window))
    job = jobs("--fidelity", "upstream", *options, "--decoding_metric", "adaptive")["gsm8k"]
    assert job.compression.recipe(job.max_new_tokens).strategy.pace == delta


def test_published_streamingllm_window() -> None:
    job = jobs("--fidelity", "upstream", "--method", "StreamingLLM")["gsm8k"]
    assert job.compression.recipe(1).compressor.sinks(2048) == 2048 - 1024


def test_published_8k() -> None:
    found = jobs("--fidelity", "upstream", "--K", "60")
    assert {job.max_new_tokens for job in found.values()} == {7950}
    assert found["csqa"].data_file.name == "csqa_80.jsonl"


def test_single_constants_are_overridden() -> None:
    job = jobs(
        *("--fidelity", "upstream", "--dtype", "bfloat16", "--min_new_tokens", "0"),
        *("--max_new_tokens", "100", "--prompt_style", "plain", "--eos", "model"),
        *("--method", "SnapKV", "--window_size", "16", "--fidelity.causal_prefill_scores", "true"),
    )["gsm8k"]
    assert (job.dtype, job.min_new_tokens, job.max_new_tokens) == ("bfloat16", 0, 100)
    assert (job.prompt_style, job.eos, job.compression.options["window_size"]) == (
        "plain",
        "model",
        16,
    )
    assert job.compression.fidelity.causal_prefill_scores is True
    assert job.compression.fidelity.cached_heads == "query"


def test_paper_setting() -> None:
    found = jobs("--method", "h2o", "--decoding_metric", "none")
    assert {job.max_new_tokens for job in found.values()} == {4096}
    job = found["mmlu"]
    assert (job.drop_rows, job.min_new_tokens, job.prompt_style) == ((), 0, "plain")
    assert job.label == "H2O+None"
    assert str(job.result_file) == (
        "results/runs/H2O+None/llama-3.1-8b-instruct_2048/mmlu/H2O.json"
    )


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ("", "ALLKV+None/llama-3.1-8b-instruct_full"),
        ("--K 60", "ALLKV+None_K_60/llama-3.1-8b-instruct_full"),
        (
            "--method H2O --decoding_metric slide --max_capacity_prompts 99",
            "H2O+slide_decoding_window_512_recent_window_256/llama-3.1-8b-instruct_99",
        ),
        (
            "--decoding_metric slide --decoding_score random --seed 7 --decoding_window_size 20",
            "ALLKV+slide_decoding_window_20_recent_window_10_score_random_seed_7/"
            "llama-3.1-8b-instruct_full",
        ),
        (
            "--decoding_metric slm --dtype float16 --max_new_tokens 5 --drop_rows 1 2",
            "ALLKV+slm_decoding_window_512_drop_rows_1-2_max_new_tokens_5_dtype_float16/"
            "llama-3.1-8b-instruct_full",
        ),
        (
            "--method SnapKV --budget pyramid --kernel_size 5 --fidelity upstream "
            "--fidelity.cached_heads kv",
            "SnapKV+None_budget_pyramid_kernel_size_5_fidelity_upstream_cached_heads_kv/"
            "llama-3.1-8b-instruct_2048",
        ),
    ],
)
def test_every_setting_has_its_folder(options: str, folder: str) -> None:
    job = jobs(*options.split(), "--dataset", "gsm8k")["gsm8k"]
    assert str(job.folder) == f"results/runs/{folder}/gsm8k"


def test_paths_of_one_name_have_folders_of_their_own() -> None:
    first, other = (
        jobs("--dataset", "gsm8k", "--instruction_file", path)["gsm8k"].folder
        for path in ("a/instructions.json", "b/instructions.json")
    )
    assert first != other


def test_shared_options_are_taken_where_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        "dataset: gsm8k\nmax_capacity_prompts: 99\ndecoding_score: cumulative\nruns:\n"
        "  - {method: ALLKV}\n  - {method: H2O}\n  - {method: H2O, decoding_metric: slide}\n"
        "  - {method: ALLKV, decoding_metric: slm}\n"
    )
    model = ["--model_path", "m", "--device", "cpu"]
    with pytest.raises(ScopeError, match="kernel_size is read by none of the runs"):
        parse_command(["--config", str(path), *model, "--kernel_size", "3"])
    runs = parse_command(["--config", str(path), *model]).runs
    assert [run.compression.label for run in runs] == [
        "ALLKV+None",
        "H2O+None",
        "H2O+slide (cumulative)",
        "ALLKV+slm",
    ]
    assert [run.compression.options.get("max_capacity_prompt") for run in runs] == [
        None, 99, 99, None
    ]  # fmt: skip
    path.write_text("runs:\n  - {method: ALLKV, max_capacity_prompts: 99}\n")
    with pytest.raises(ScopeError, match="max_capacity_prompt is not an option of ALLKV"):
        parse_command(["--config", str(path), *model])


@pytest.mark.parametrize("name", ["demo", "smollm2"])
def test_shipped_grids(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = parse_command(["--config", f"scripts/{name}.yaml", "--model_path", "m"])
    found = [job for run in command.runs for job in jobs_of(run)]
    assert all(job.data_file.exists() for job in found)
    assert len({job.folder for job in found}) == len(found) > 8


def test_demo_budgets_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that evicts while generating keeps 131 + 64 tokens in the end, over all layers."""
    monkeypatch.chdir(ROOT)
    for run in parse_command(["--config", "scripts/demo.yaml"]).runs:
        [job] = jobs_of(run)
        if job.compression.decoding_metric != "None":
            schedule = Schedule(job.compression.recipe(job.max_new_tokens), 4, 1)
            schedule.admit(0, 131)
            for _ in range(job.max_new_tokens):
                schedule.advance()
            assert schedule.now.lengths.mean() == 131 + 64


@pytest.mark.parametrize(
    ("name", "own", "preset", "expected"),
    [
        ("gsm8k", 30, "paper", 4096),
        ("gsm8k", 60, "paper", 8192),
        ("csqa", 40, "paper", 4096),
        ("csqa", 80, "paper", 8192),
        ("gsm8k", 60, "upstream", 7950),
        ("csqa", 40, "upstream", 7950),
    ],
)
@pytest.mark.parametrize("noted", [True, False])
def test_t_follows_the_data_files_own_k(
    name: str, own: int, preset: str, expected: int, noted: bool, tmp_path: Path
) -> None:
    data = data_file_of(tmp_path, name, own, {"dataset": name, "k": own} if noted else None)
    assert jobs("--fidelity", preset, "--data_file", data)[name].max_new_tokens == expected


@pytest.mark.parametrize(
    ("options", "note", "message"),
    [
        (("--K", "60"), None, "line 1: 4 questions, and not the 60 that --K asks for"),
        ((), {"dataset": "gsm8k", "k": 30}, "line 1: 4 questions, and 30 in the note"),
        ((), {"dataset": "csqa", "k": 4}, "line 1: built of csqa"),
    ],
)
def test_data_of_another_size_or_set(
    options: tuple[str, ...], note: dict[str, object] | None, message: str, tmp_path: Path
) -> None:
    data = data_file_of(tmp_path, "gsm8k", 4, note)
    with pytest.raises(ScopeError, match=message):
        jobs("--data_file", data, *options)


def test_a_file_of_data_dir_with_another_k(tmp_path: Path) -> None:
    data = data_file_of(tmp_path / "gsm8k", "gsm8k", 4, None)
    Path(data).rename(tmp_path / "gsm8k" / "gsm8k_30.jsonl")
    with pytest.raises(ScopeError, match="4 questions, and not the 30"):
        jobs("--dataset", "gsm8k", "--data_dir", str(tmp_path))


def data_file_of(folder: Path, name: str, own: int, note: dict[str, object] | None) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}_mine.jsonl"
    row = {"prompt": "Question_1:", "questions": ["?"] * own, "answers": ["A"] * own}
    path.write_text(json.dumps(row) + "\n")
    if note is not None:
        path.with_suffix(".meta.json").write_text(json.dumps(note))
    return str(path)
