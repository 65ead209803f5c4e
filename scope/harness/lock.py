"""One process at a time writes into a result folder."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from scope.errors import ScopeError
from scope.harness.results import telling


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made where it is not there; ``run.lock`` in it says who does.

    The system lets go of the lock when its process ends in whatever way, so a file that a killed
    process left behind on this host is taken over. Whether one of another host is still held cannot
    be seen on every file system, so that one is for the user to remove.

    Raises:
        ScopeError: another process holds the folder, or nothing can be written there.
    """
    path = folder / "run.lock"
    with telling(path, "written"):
        folder.mkdir(parents=True, exist_ok=True)
        file = _acquire(path)
    holder = {"host": socket.gethostname(), "process": os.getpid()}
    with file:
        try:
            with telling(path, "written"):
                file.truncate(0)
                file.write(json.dumps(holder).encode())
            yield
        finally:
            path.unlink(missing_ok=True)


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
        raise ScopeError(
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
