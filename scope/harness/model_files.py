"""What is wrong with a model's files, told by file before anything reads them.

transformers falls back without a word where it cannot read some of them (generation_config.json),
and of others it tells what failed, but not in which file.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from scope.errors import ScopeError

_SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "*.index.json",
)
# The names that transformers reads; the second only where there are none of the first.
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_LFS_POINTER = b"version https://git-lfs"


def check_settings(model_path: Path) -> None:
    """Everything but weights, of a local folder; or a .gguf file. A hub id passes.

    Raises:
        ScopeError: for a file that cannot be what its name says.
    """
    _check([model_path] if model_path.is_file() else _files(model_path, _SETTINGS))


def check_weights(model_path: Path) -> None:
    """The weights of a local folder: complete files, as far as their headers tell.

    Raises:
        ScopeError: for a file that cannot be what its name says.
    """
    found = (_files(model_path, [pattern]) for pattern in _WEIGHTS)
    _check(next(filter(None, found), []))


def _files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return [file for pattern in patterns for file in sorted(folder.glob(pattern))]


def _check(files: Iterable[Path]) -> None:
    for file in files:
        try:
            problem = _problem(file)
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
        if problem:
            raise ScopeError(f"{file} {problem}")


def _problem(file: Path) -> str | None:
    with file.open("rb") as content:
        head = content.read(len(_LFS_POINTER))
    if not head:
        return "is empty; download it again"
    if head == _LFS_POINTER:
        return "is a git-lfs pointer, not the file itself; fetch it with `git lfs pull`"
    if file.suffix == ".json":
        return _json_problem(file)
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt"):
                return None
        except SafetensorError as error:
            return f"is not a complete safetensors file ({error}); download it again"
    return None


def _json_problem(file: Path) -> str | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"is not JSON ({error}); download it again"
    return None if isinstance(content, dict) else "is not a JSON object; download it again"
