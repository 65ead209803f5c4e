"""The files of a result folder: they survive being killed, and never mix two configurations."""

import hashlib
import json
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope.errors import ScopeError


@dataclass(frozen=True)
class ResultFile:
    """JSON lines, one per example: appended as they finish, and put in order in the end."""

    path: Path

    def resume(self, indices: Sequence[int]) -> set[int]:
        """Cut off a half-written last line and tell which examples are done.

        Args:
            indices: the ``index`` of every example that the file may hold, once and in any order.

        Raises:
            ScopeError: for any other line that is not one of ours, with its number.
        """
        if not self.path.exists():
            return set()
        content = self.path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        expected, done = set(indices), set()
        for number, line in enumerate(complete.splitlines(), start=1):
            index = self._index(number, line)
            if index not in expected or index in done:
                again = " again" if index in done else ", which is not to be run"
                raise ScopeError(
                    f"{self.path}, line {number}: holds example {index}{again}; remove the line or "
                    "use another --save_dir"
                )
            done.add(index)
        if len(complete) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(complete))
        return done

    def _index(self, number: int, line: bytes) -> int:
        try:
            return operator.index(json.loads(line)["index"])
        except (ValueError, KeyError, TypeError):
            raise ScopeError(
                f"{self.path}, line {number}: not a result of this program; repair or remove the "
                "line, or use another --save_dir"
            ) from None

    def append(self, record: dict[str, Any]) -> None:
        """Write one example and make sure that it is on disk."""
        with self.path.open("ab") as file:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def sort(self, indices: Sequence[int]) -> None:
        """Put the lines into this order of their ``index``, if they are not yet."""
        content = self.path.read_bytes()
        lines = {json.loads(line)["index"]: line + b"\n" for line in content.splitlines()}
        ordered = b"".join(lines[index] for index in indices)
        if ordered != content:
            _replace(self.path, ordered)

    def records(self) -> list[dict[str, Any]]:
        """All examples that are done."""
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]


@dataclass(frozen=True)
class RunFile:
    """run.json beside a result file: what was run, on what, and what it took."""

    path: Path

    def open(self, config: dict[str, Any]) -> dict[str, Any]:
        """What an earlier start wrote, or an empty run.

        Raises:
            ScopeError: if the folder belongs to another configuration.
        """
        text = json.dumps(config, sort_keys=True)
        config_hash = hashlib.sha256(text.encode()).hexdigest()[:16]
        if not self.path.exists():
            if any(self.path.parent.glob("*.json")):
                raise ScopeError(
                    f"{self.path.parent} holds results without a run.json; use another --save_dir"
                )
            return {"config": config, "config_hash": config_hash}
        try:
            run = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ScopeError(f"{self.path}: not JSON ({error}); use another --save_dir") from None
        if run.get("config_hash") != config_hash:
            theirs = run.get("config", {})
            changed = [key for key in config if theirs.get(key) != config[key]]
            raise ScopeError(
                f"{self.path.parent} belongs to another configuration, with another "
                f"{', '.join(changed) or 'version'}; use another --save_dir or remove the folder"
            )
        return run

    def write(self, run: dict[str, Any]) -> None:
        """Replace the file in one piece.

        Raises:
            ScopeError: where nothing can be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self.path, (json.dumps(run, indent=1) + "\n").encode())
        except OSError as error:
            raise ScopeError(
                f"{self.path}: cannot be written ({error.strerror}); use another --save_dir"
            ) from None


def _replace(path: Path, content: bytes) -> None:
    """Give a file other content: whenever this is killed, one of the two is on disk."""
    draft = path.with_suffix(".tmp")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
