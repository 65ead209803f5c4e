"""Command lines of small runs, and their results."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Path]


def arguments_of(model: Path, data: Path, save_dir: Path, **options: Any) -> list[str]:
    """A run with small budgets, and options that come last; None takes one back."""
    settings = {
        "model_path": model,
        "data_file": data,
        "save_dir": save_dir,
        "method": "h2o",
        "decoding_metric": "SLIDE",
        "max_capacity_prompts": 24,
        "decoding_window_size": 12,
        "decoding_recent_size": 6,
        "max_new_tokens": 40,
        "batch_size": 2,
        "device": "cpu",
        "instruction_file": instruction_file(data.parent),
    } | options
    return [
        text
        for key, value in settings.items()
        if value is not None
        for text in (f"--{key}", str(value))
    ]


# Takes the options of `arguments_of` back that the full cache does not read.
FULL = {
    "method": "ALLKV",
    "decoding_metric": "None",
    "max_capacity_prompts": None,
    "decoding_window_size": None,
    "decoding_recent_size": None,
}


def instruction_file(folder: Path) -> Path:
    path = folder / "instruction.json"
    path.write_text(json.dumps({"gsm8k": "w1 w2"}))
    return path


def result_files(folder: Path) -> dict[str, bytes]:
    """All result files below a folder, by their path in it."""
    files = [path for path in folder.rglob("*.json") if path.name != "run.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a result file or data file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def one_error(code: int, error: str) -> str:
    """The one line that a command with bad input ends with."""
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(lines) == 1
    assert "Traceback" not in error
    return lines[0]
