"""Every kind of bad input: one clear line, exit code 2, nothing written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from scope.harness.cli import main
from scope.harness.sweep.command import main as sweep
from tests.harness.running import arguments_of, one_error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "SnapKv2"}, "unknown method 'SnapKv2'; expected one of ALLKV, SnapKV"),
        ({"decoding_metric": "glide"}, "unknown decoding_metric 'glide'; expected one of None"),
        (
            {"decoding_metric": "slide", "decoding_recent_size": 512},
            "decoding_recent_size 512 leaves no room",
        ),
        ({"decoding_metric": "slide", "decoding_recent_size": 0}, "decoding_recent_size 0 leaves"),
        ({"decoding_metric": "slide", "decoding_window_size": -4}, "decoding_window_size is -4"),
        ({"decoding_window_size": 4}, "decoding_window_size is not an option of ALLKV+None"),
        ({"decoding_metric": "slm", "decoding_score": "current"}, "decoding_score is not an"),
        ({"decoding_metric": "slide", "delta": 3}, "delta is not an option of ALLKV+slide"),
        (
            {"decoding_metric": "adaptive", "delta": -3, "fidelity": "upstream"},
            "delta is -3; it must be at least 1",
        ),
        ({"method": "H2O", "max_capacity_prompts": -1}, "max_capacity_prompt is -1"),
        ({"method": "H2O", "max_capacity_prompts": 10**12}, "expected a whole number of at most"),
        ({"drop_rows": -1}, "--drop_rows is -1; it must be at least 0"),
        ({"min_new_tokens": -1}, "--min_new_tokens is -1; it must be at least 0"),
        ({"min_new_tokens": 9}, "--min_new_tokens 9 is more than the 8 new tokens"),
        ({"max_prompt_tokens": 0}, "--max_prompt_tokens is 0; it must be at least 1"),
        ({"seed": -1}, "--seed is -1; it must be at least 0"),
        ({"seed": 10**20}, "expected a whole number of at most"),
        ({"device": "cpu:3"}, "--device cpu:3: torch has one cpu; use --device cpu"),
        ({"device": "meta"}, "--device meta: nothing is computed there; expected cuda"),
        ({"device": "mps"}, "--device mps: not available here; expected cuda"),
        ({"window_size": 2048, "method": "H2O"}, "window_size 2048 leaves no room"),
        ({"method": "SnapKV", "kernel_size": 4}, "kernel_size is 4; it must be odd"),
        (
            {"method": "SnapKV", "pooling": "median"},
            "pooling is 'median'; expected one of maxpool, avgpool",
        ),
        ({"batch_size": 0}, "--batch_size is 0"),
        ({"batch_size": "many"}, "batch_size is 'many'; expected a whole number or auto"),
        ({"use_cache": "false"}, "--use_cache false"),
        ({"fidelity": "exact"}, "unknown fidelity preset 'exact'; expected paper or upstream"),
        ({"fidelity.cached_heads": "all"}, "fidelity.cached_heads is 'all'; expected one of kv"),
        ({"dataset": "trivia"}, "unknown dataset 'trivia'"),
        ({"dataset": "recall"}, "not answers as the data set recall has them"),
        ({"data_file": "nowhere.jsonl", "dataset": "gsm8k"}, "data file nowhere.jsonl: No such"),
        (
            {"data_file": "mine.jsonl"},
            "say with --dataset which of gsm8k, mmlu, csqa, notes",
        ),
        ({"model_path": "nowhere/model"}, "--model_path nowhere/model: cannot be loaded"),
        ({"model_path": "nowhere.gguf"}, "--model_path nowhere.gguf: no such file"),
        ({"max_new_tokens": 250}, "the prompt has"),
        ({"instruction_file": "nowhere.json"}, "--instruction_file nowhere.json"),
        ({"attn_implementation": "flash_attention_2"}, "needs the flash-attn package"),
        ({"prompt_style": "chat"}, "no chat template"),
        ({"device": "cuda"}, "torch sees no GPU here"),
        ({"device": "gpu"}, "--device gpu: torch knows no such device"),
        ({"save_dir": __file__}, "gsm8k: cannot be written (Not a directory)"),
        ({"compare_with": __file__}, "expected a finished result file of this program"),
        ({"config": "nowhere.yaml"}, "--config nowhere.yaml"),
        ({"low_rank": "nowhere"}, "low_rank nowhere: no such file; expected is the file of"),
        ({"share_layers": "9=1"}, "share_layers 9=1 names layer 9, and the model has 2"),
        ({"compare_with": "nowhere.json", "max_new_tokens": 2}, "--compare_with nowhere.json"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_option(
    options: dict[str, object],
    message: str,
    model_folder: Path,
    data_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if options.get("device") == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is there")
    if torch.cuda.is_available() and options.keys() & {"attn_implementation", "device"}:
        pytest.skip("a GPU and flash-attn may be there")
    settings = {
        "model_path": model_folder,
        "data_file": data_file,
        "save_dir": tmp_path / "out",
        "max_new_tokens": 8,
        "max_num_examples": 1,
        "device": "cpu",
    } | options
    code = main([text for key, value in settings.items() for text in (f"--{key}", str(value))])
    check(code, capsys.readouterr().err, message)
    assert not (tmp_path / "out").exists()


ROW = '{"prompt": "w1", "questions": [], "answers": ["1"]}\n'
GOOD = '{"prompt": "Question_1:", "questions": [], "answers": ["#### 1"]}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (f'{ROW}{{"prompt"\n', "line 2: not JSON"),
        ('{"prompt": "w1", "answers": ["1"]}\n', "line 1: expected a JSON object"),
        (ROW + ROW.replace('"1"', ""), "line 2: expected a JSON object"),
        (ROW.replace('"1"', "1"), "line 1: expected a JSON object"),
        ('["w1"]\n', "line 1: expected a JSON object"),
        (b"\xff\xfe", "not UTF-8"),
        (ROW, "line 1: the prompt has no 'Question_<number>:'"),
        (GOOD + GOOD.replace("#### 1", "#### NaN"), "line 2: the gold answer '#### NaN'"),
        (GOOD.replace("#### 1", "K1 bird 3 NONE 3"), "line 1: the gold answer 'K1 bird"),
    ],
)
def test_bad_data_file(
    content: str | bytes,
    message: str,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "gsm8k.jsonl"
    data.write_bytes(content if isinstance(content, bytes) else content.encode())
    arguments = ["--model_path", str(model_folder), "--data_file", str(data)]
    code = main([*arguments, "--max_new_tokens", "8", "--save_dir", str(tmp_path / "out")])
    check(code, capsys.readouterr().err, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "a mapping of options was expected"),
        ("model_path: [", "while parsing"),
        ("model_path: m\nmetod: H2O\n", "unknown option 'metod'"),
        ("model_path: m\nruns: 3\n", "`runs` must be a list"),
        (
            "model_path: m\nbatch_size: many\n",
            "batch_size is 'many'; expected a whole number or auto",
        ),
        ("model_path: m\npooling: median\n", "pooling is 'median'; expected one of maxpool"),
        ("model_path: m\nfidelity.sinks: 4\n", "unknown fidelity switch 'sinks'"),
        ("model_path: m\n3: H2O\n", "unknown option '3'"),
        ("method: H2O\n", "--model_path is missing"),
    ],
)
def test_bad_yaml(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(content)
    check(main(["--config", str(config)]), capsys.readouterr().err, message)


def test_no_rows_left(
    model_folder: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = arguments_of(model_folder, data_file, tmp_path / "out")
    code = main([*arguments, "--drop_rows", *"01234"])
    check(code, capsys.readouterr().err, "--drop_rows leaves none of its examples")


def test_yaml_that_is_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_bytes(b"model_path: \xff\n")
    check(main(["--config", str(config)]), capsys.readouterr().err, "can't decode byte 0xff")


@pytest.mark.parametrize("command", ["run", "run --dry_run", "sweep", "sweep --dry_run"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "KVCompress", "fidelity": "upstream"}, "the budget blocks gives heads"),
        ({"method": "KVCompress", "share_heads": True}, "the budget blocks keeps other tokens in"),
        ({"merged_layers": 0.4}, "merged_layers 0.4 is less than two of the model's 2 layers"),
        ({"method": "LoCoCo"}, "heads recall are for a model of 4 layers and heads of 32, and"),
        ({"decoding_score": "triattention", "decoding_metric": "slide"}, "calibration is None"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_methods_that_do_not_go_together_are_told_without_weights(
    command: str,
    options: dict[str, object],
    message: str,
    model_folder: Path,
    data_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, config = tmp_path / "model", tmp_path / "config.yaml"
    shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    paths = {"model_path": str(folder), "data_file": str(data_file), "results_dir": str(tmp_path)}
    config.write_text(yaml.safe_dump({**paths, "device": "cpu", "max_new_tokens": 8, **options}))
    program, *more = command.split()
    if program == "run":
        code = main(["--config", str(config), *more])
    else:
        code = sweep([str(config), *more])
    check(code, capsys.readouterr().err, message)


def test_comparison_with_something_else(
    model_folder: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = tmp_path / "other.json", tmp_path / "out"
    other.write_text("[1]\n")
    arguments = arguments_of(model_folder, data_file, out, compare_with=other)
    check(main(arguments), capsys.readouterr().err, "expected a finished result file")
    assert not out.exists()


def test_unsupported_model(
    model_folder: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bloom"
    shutil.copytree(model_folder, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    code = main(["--model_path", str(folder), "--data_file", str(data_file)])
    check(code, capsys.readouterr().err, "BloomForCausalLM is not supported")


def check(code: int, error: str, message: str) -> None:
    assert message in one_error(code, error)
