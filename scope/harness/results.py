"""The files of a result folder: they survive being killed, and never mix two configurations."""

import hashlib
import json
import operator
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scope.errors import ScopeError

# What of a configuration may differ from one start to the next: where files lie, whose hashes are
# compared, and how many examples are run, together or at all, which changes none of them.
_FREE = ("data_file", "instruction_file", "batch_size", "max_num_examples")


@contextmanager
def telling(path: Path, done: Literal["read", "written"]) -> Iterator[None]:
    """Tell in one line what the system says of a file, what is safe, and what to do."""
    try:
        yield
    except OSError as error:
        advice = "make it readable" if done == "read" else "make room, or allow writing there,"
        raise ScopeError(
            f"{path}: cannot be {done} ({error.strerror}); finished examples are safe on disk: "
            f"{advice} and start the same command again, or use another --save_dir"
        ) from None


def check_writable(folder: Path) -> None:
    """See that files can be made in a folder, or in the nearest that is there already.

    Raises:
        ScopeError: if not.
    """
    with telling(folder, "written"):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not there.is_dir():
            raise NotADirectoryError(0, "Not a directory")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(0, "Permission denied")


@dataclass(frozen=True)
class ResultFile:
    """JSON lines, one per example: appended as they finish, and put in order in the end."""

    path: Path

    def done(self, indices: Collection[int]) -> list[int]:
        """Which examples are there, line by line; one that is only half written is not.

        Args:
            indices: the ``index`` of every example that the file may hold, each once.

        Raises:
            ScopeError: an unreadable file, or any other line that is not one of ours, with its
                number.
        """
        expected, done = set(indices), list[int]()
        for number, line in enumerate(self._whole_lines(), start=1):
            index = self._index(number, line)
            if index not in expected or index in done:
                again = " again" if index in done else ", which is not to be run"
                raise ScopeError(
                    f"{self.path}, line {number}: holds example {index}{again}; remove the line or "
                    "use another --save_dir"
                )
            done.append(index)
        return done

    def count(self) -> int:
        """How many examples are there."""
        return len(self._whole_lines())

    def cut(self) -> None:
        """Remove a half-written last line."""
        with telling(self.path, "written"):
            if self.path.exists():
                whole = sum(map(len, self._whole_lines()))
                if whole < self.path.stat().st_size:
                    os.truncate(self.path, whole)

    def _whole_lines(self) -> list[bytes]:
        with telling(self.path, "read"):
            if not self.path.exists():
                return []
            lines = self.path.read_bytes().split(b"\n")
        return [line + b"\n" for line in lines[:-1]]

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
        with telling(self.path, "written"), self.path.open("ab") as file:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def sort(self, indices: Sequence[int]) -> None:
        """Put the lines into this order of their ``index``, if they are not yet."""
        lines = {json.loads(line)["index"]: line for line in self._whole_lines()}
        _replace(self.path, b"".join(lines[index] for index in indices))

    def records(self) -> list[dict[str, Any]]:
        """All examples that are done."""
        return [json.loads(line) for line in self._whole_lines()]


@dataclass(frozen=True)
class RunFile:
    """run.json beside a result file: what was run, on what, and what it took."""

    path: Path

    def open(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What an earlier start wrote, or an empty run.

        Raises:
            ScopeError: an unreadable file, or a folder of another configuration.
        """
        ours = _identity(config)
        text = json.dumps(ours, sort_keys=True)
        config_hash = hashlib.sha256(text.encode()).hexdigest()[:16]
        with telling(self.path, "read"):
            if not self.path.exists():
                if any(self.path.parent.glob("*.json")):
                    raise ScopeError(
                        f"{self.path.parent} holds results without a run.json; use another "
                        "--save_dir"
                    )
                return {"config": dict(config), "config_hash": config_hash}
            content = self.path.read_bytes()
        run = self._parse(content)
        theirs = _identity(run["config"])
        changed = [key for key in ours.keys() | theirs if theirs.get(key) != ours.get(key)]
        if changed:
            raise ScopeError(
                f"{self.path.parent} belongs to another configuration, with another "
                f"{', '.join(sorted(changed))}; use another --save_dir or remove the folder"
            )
        return run | {"config_hash": config_hash}

    def _parse(self, content: bytes) -> dict[str, Any]:
        try:
            run = json.loads(content)
        except ValueError as error:
            raise ScopeError(f"{self.path}: not JSON ({error}); use another --save_dir") from None
        kinds = {"config": dict, "data": dict, "metrics": dict, "starts": list, "warnings": list}
        if (
            not isinstance(run, dict)
            or "config" not in run
            or not all(isinstance(run.get(key, kind()), kind) for key, kind in kinds.items())
        ):
            raise ScopeError(f"{self.path}: not the run.json of a run; use another --save_dir")
        return run

    def write(self, run: Mapping[str, Any]) -> None:
        """Replace the file in one piece.

        Raises:
            ScopeError: where nothing can be written.
        """
        _replace(self.path, (json.dumps(run, indent=1) + "\n").encode())


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _FREE}


def _replace(path: Path, content: bytes) -> None:
    """Give a file this content: whenever this is killed, the old or the new one is on disk."""
    draft = path.with_suffix(".tmp")
    with telling(path, "written"):
        if path.exists() and path.read_bytes() == content:
            return
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)  # what could not be finished only takes room
