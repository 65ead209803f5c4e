"""The files of a result folder: they survive being killed, and never mix two configurations."""

import hashlib
import json
import operator
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scope.errors import ScopeError

# What of a configuration may differ from one start to the next: where files lie, whose hashes are
# compared, and how many examples and texts are run, together or at all, which changes none.
_FREE = ("data_file", "instruction_file", "batch_size", "max_num_examples", "num_samples")
# Ends the name of a file's hash; before it stands the option that names the file.
HASH = "_sha256"

# An example's index, and the number of a text after it.
TextKey = tuple[int, int]


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
    """JSON lines, one per text: appended as they finish, and put in order in the end.

    A text is told by its example's ``index``, and of several by its ``sample``, from 0.
    """

    path: Path

    def done(self, indices: Collection[int]) -> list[TextKey]:
        """Which texts are there, line by line; one that is only half written is not.

        Args:
            indices: the ``index`` of every example that the file may hold, each once.

        Raises:
            ScopeError: an unreadable file, or any other line that is not one of ours, with its
                number.
        """
        expected, done = set(indices), list[TextKey]()
        for number, line in enumerate(self._whole_lines(), start=1):
            key = self._key(number, line)
            if key[0] not in expected or key in done:
                again = " again" if key in done else ", which is not to be run"
                raise ScopeError(
                    f"{self.path}, line {number}: holds example {key[0]}{again}; remove the line "
                    "or use another --save_dir"
                )
            done.append(key)
        return done

    def count(self) -> int:
        """How many texts are there."""
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

    def _key(self, number: int, line: bytes) -> TextKey:
        try:
            return key_of(json.loads(line))
        except (ValueError, KeyError, TypeError):
            raise ScopeError(
                f"{self.path}, line {number}: not a result of this program; repair or remove the "
                "line, or use another --save_dir"
            ) from None

    def append(self, record: dict[str, Any]) -> None:
        """Write one text and make sure that it is on disk."""
        with telling(self.path, "written"), self.path.open("ab") as file:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def sort(self) -> None:
        """Put the lines into the order of their examples and texts, if they are not yet."""
        lines = sorted(self._whole_lines(), key=lambda line: key_of(json.loads(line)))
        _replace(self.path, b"".join(lines))

    def records(self) -> list[dict[str, Any]]:
        """All texts that are done."""
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


def key_of(record: Mapping[str, Any]) -> TextKey:
    """Which text a record holds."""
    return operator.index(record["index"]), operator.index(record.get("sample", 0))


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    hashed = (key.removesuffix(HASH) for key in config if key.endswith(HASH))
    free = {*_FREE, *hashed}
    return {key: value for key, value in config.items() if key not in free}


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
