"""One process at a time writes into a result folder."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from scope.errors import ScopeError
from scope.harness.results import telling

LOCK = "run.lock"


class FolderInUseError(ScopeError):
    """Another process writes there."""


@contextmanager
def locked(folder: Path, patience: float = 0) -> Iterator[None]:
    """Hold a folder, which is made where it is not there; ``run.lock`` in it says who does.

    The system lets go of the lock when its process ends in whatever way, so a file that a killed
    process left behind on this host is taken over. Whether one of another host is still held cannot
    be seen on every file system, so that one is for the user to remove, or for who has seen the
    process end: see `forget`.

    Args:
        folder: what to hold.
        patience: seconds to wait for another process to let go.

    Raises:
        ScopeError: another process holds the folder, or nothing can be written there.
    """
    path, until = folder / LOCK, time.monotonic() + patience
    with telling(path, "written"):
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                file = _acquire(path)
                break
            except FolderInUseError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
    host, process = this_process()
    holder = {"host": host, "process": process}
    with file:
        try:
            with telling(path, "written"):
                file.truncate(0)
                file.write(json.dumps(holder).encode())
            yield
        finally:
            path.unlink(missing_ok=True)


def forget(folder: Path, holder: tuple[str, int]) -> None:
    """Let go of a folder for a process that has ended, on whatever host; no other's is touched.

    Args:
        folder: what it may have held.
        holder: its `this_process`.
    """
    path = folder / LOCK
    with suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
        if _holder(file) == holder:
            path.unlink()


def this_process() -> tuple[str, int]:
    """Host and process, as a lock names its holder."""
    return socket.gethostname(), os.getpid()


def _acquire(path: Path) -> FileIO:
    """The locked file."""
    while True:
        file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_there(path, file):
                file.close()  # whoever held it has removed it since it was opened
                continue
            host, process = _holder(file)
            if host in (None, socket.gethostname()):
                return file
            advice = f"if it has ended, remove {path}"
        except BlockingIOError:
            host, process = _holder(file)
            advice = "wait for it, or use another --save_dir"
        except OSError:
            file.close()
            raise
        file.close()
        raise FolderInUseError(
            f"{path.parent} is written by process {process or 'unknown'} on host "
            f"{host or 'unknown'}; {advice}"
        )


def _is_there(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(file: FileIO) -> tuple[str | None, int | None]:
    """Host and process that the file names; it is empty for a moment before it names one."""
    file.seek(0)
    try:
        named = json.load(file)
        return named["host"], named["process"]
    except (ValueError, KeyError, TypeError):
        return None, None
