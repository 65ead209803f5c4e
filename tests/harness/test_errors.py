"""Every kind of bad input: one clear line, exit code 2, nothing written."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from scope.harness.cli import main
from tests.harness.running import arguments_of


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "SnapKv2"}, "unknown method 'SnapKv2'; expected one of ALLKV, SnapKV"),
        ({"decoding_metric": "glide"}, "unknown decoding_metric 'glide'; expected one of None"),
        ({"decoding_recent_size": 512}, "decoding_recent_size 512 leaves no room"),
        ({"decoding_recent_size": 0}, "decoding_recent_size is 0"),
        ({"window_size": 2048, "method": "H2O"}, "window_size 2048 leaves no room"),
        ({"kernel_size": 4}, "kernel_size is 4; it must be odd"),
        ({"pooling": "median"}, "invalid choice: 'median'"),
        ({"batch_size": 0}, "--batch_size is 0"),
        ({"batch_size": "many"}, "expected a number or auto, not 'many'"),
        ({"use_cache": "false"}, "--use_cache false"),
        ({"fidelity": "exact"}, "unknown fidelity preset 'exact'; expected paper or upstream"),
        ({"fidelity.cached_heads": "all"}, "fidelity.cached_heads is 'all'; expected one of kv"),
        ({"dataset": "trivia"}, "unknown dataset 'trivia'"),
        ({"dataset": "recall"}, "not answers as the data set recall has them"),
        ({"data_file": "nowhere.jsonl", "dataset": "gsm8k"}, "data file nowhere.jsonl: No such"),
        (
            {"data_file": "mine.jsonl"},
            "say with --dataset which of gsm8k, mmlu, csqa, recall it is",
        ),
        ({"model_path": "nowhere/model"}, "--model_path nowhere/model: cannot be loaded"),
        ({"model_path": "nowhere.gguf"}, "--model_path nowhere.gguf: no such file"),
        ({"max_new_tokens": 250}, "the prompt has"),
        ({"instruction_file": "nowhere.json"}, "--instruction_file nowhere.json"),
        ({"attn_implementation": "flash_attention_2"}, "needs the flash-attn package"),
        ({"prompt_style": "chat"}, "no chat template"),
        ({"device": "cuda"}, "torch sees no GPU here"),
        ({"device": "gpu"}, "--device gpu: torch knows no such device"),
        ({"save_dir": __file__}, "run.json: cannot be written (Not a directory)"),
        ({"compare_with": __file__}, "expected a finished result file of this program"),
        ({"config": "nowhere.yaml"}, "--config nowhere.yaml"),
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
        ("model_path: m\nbatch_size: many\n", "batch_size is 'many'; expected number or auto"),
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
    folder = tmp_path / "gpt"
    shutil.copytree(model_folder, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    code = main(["--model_path", str(folder), "--data_file", str(data_file)])
    check(code, capsys.readouterr().err, "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM")


def check(code: int, error: str, message: str) -> None:
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in error
