"""Where questions come from: local files, or the hub.

Hub revisions are pinned, so that a data file built today equals one built next year.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope.errors import ScopeError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """One question; ``answer`` is a letter where there are options, else as the data set has it."""

    question: str
    answer: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """The items by subject (one, unnamed, where there are none), and where they came from."""

    items: Mapping[str, tuple[Item, ...]]
    origin: Mapping[str, str]


@dataclass(frozen=True)
class Hub:
    """One split of a data set on the Hugging Face hub, at one commit."""

    path: str
    config: str | None
    split: str
    revision: str


def read_hub(hub: Hub | None) -> tuple[Sequence[Row], dict[str, str]]:
    """The rows of a data set on the hub, and what to note of their origin.

    Raises:
        ScopeError: it cannot be had.
    """
    if hub is None:
        raise ScopeError("this data set is not on the hub; give the data with --source")
    from datasets import load_dataset

    try:
        rows = load_dataset(hub.path, hub.config, split=hub.split, revision=hub.revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ScopeError(
            f"cannot get {hub.path} from the hub ({reason}); give the data with --source"
        ) from error
    return rows, {"hub": hub.path, "split": hub.split, "revision": hub.revision}


def read_rows(file: Path) -> list[Row]:
    """The rows of a JSON-lines or ``.parquet`` file.

    Raises:
        ScopeError: it is neither.
    """
    if file.suffix == ".parquet":
        from pyarrow import ArrowException, parquet

        try:
            return parquet.read_table(file).to_pylist()
        except ArrowException as error:
            raise ScopeError(f"--source {file}: not a parquet file ({error})") from None
    rows = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise ScopeError(f"--source {file}:{number}: not a JSON line") from None
    return rows


def local_origin(files: Iterable[Path]) -> dict[str, str]:
    """What to note of local files: the name of one, the number of several, and their SHA-256."""
    digest = hashlib.sha256()
    names = []
    for file in files:
        names.append(file.name)
        digest.update(file.read_bytes())
    return {
        "files": names[0] if len(names) == 1 else f"{len(names)} files",
        "sha256": digest.hexdigest(),
    }
