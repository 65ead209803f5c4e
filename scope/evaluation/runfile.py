"""run.json as far as the scorer reads it: anything odd in it is as if it were not there."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

_LARGEST = 2**63


@dataclass(frozen=True)
class RunFile:
    """The run.json beside a result file; every part of it may be missing.

    ``problem`` says why the file as a whole could not be read.
    """

    content: Mapping[str, Any]
    problem: str | None = None

    @property
    def label(self) -> str | None:
        """What to call the run: its own label, or made from the settings of an older one."""
        method, score = self.text("config", "method"), self.text("config", "decoding_score")
        if (label := self.text("label")) or method is None:
            return label
        name = f"{method}+{self.text('config', 'decoding_metric')}"
        return f"{name} ({score})" if score else name

    @property
    def rows(self) -> list[int] | None:
        """The rows of the data file that were to be run."""
        rows = self._part(("data",)).get("rows")
        if not isinstance(rows, list) or not all(map(is_count, rows)):
            return None
        return sorted(set(rows)) or None

    def text(self, *keys: str) -> str | None:
        """On one line, and safe to print."""
        value = self._value(keys)
        if not isinstance(value, str):
            return None
        return " ".join(value.encode(errors="replace").decode().split()) or None

    def count(self, *keys: str) -> int | None:
        """A whole number of things."""
        value = self._value(keys)
        return value if is_count(value) else None

    def number(self, *keys: str) -> float | None:
        """Any finite number."""
        value = self._value(keys)
        return value if _is_number(value) else None

    def table(self, *keys: str) -> list[list[float]]:
        """Lines of finite numbers, all of one length; none where anything is odd."""
        lines = self._value(keys)
        if not isinstance(lines, list) or not all(isinstance(line, list) for line in lines):
            return []
        whole = all(_is_number(value) for line in lines for value in line)
        return lines if whole and len({len(line) for line in lines}) == 1 else []

    def _value(self, keys: tuple[str, ...]) -> Any:
        return self._part(keys[:-1]).get(keys[-1])

    def _part(self, keys: tuple[str, ...]) -> Mapping[str, Any]:
        part: Any = self.content
        for key in keys:
            part = part.get(key) if isinstance(part, dict) else None
        return part if isinstance(part, dict) else {}


def read_run(result_file: Path) -> RunFile:
    """What lies beside a result file."""
    path = result_file.with_name("run.json")
    if not path.exists():
        return RunFile({})
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return RunFile({}, f"{path}: cannot be read ({error.strerror}); the folders name the run")
    except (ValueError, RecursionError):
        return RunFile({}, f"{path}: not JSON; the names of the folders tell what was run")
    if not isinstance(content, dict):
        return RunFile({}, f"{path}: not a JSON object; the folders' names tell what was run")
    return RunFile(content)


def is_count(value: object) -> bool:
    """Whether something from JSON is a whole number that can be counted with."""
    return type(value) is int and 0 <= value < _LARGEST


def _is_number(value: object) -> TypeGuard[int | float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _LARGEST and math.isfinite(value)
