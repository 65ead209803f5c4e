"""The questions of GSM8K, MMLU and CommonsenseQA, from local files or from the hub.

Hub revisions are pinned, so that a data file built today equals one built next year.
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope.errors import ScopeError


@dataclass(frozen=True)
class Item:
    """One question; ``answer`` is a letter where there are options, else GSM8K's worked answer."""

    question: str
    answer: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """The items by subject (one, unnamed, except for MMLU), and where they came from."""

    items: Mapping[str, tuple[Item, ...]]
    origin: Mapping[str, str]


@dataclass(frozen=True)
class _Hub:
    path: str
    config: str | None
    split: str
    revision: str


_HUB = {
    "gsm8k": _Hub("openai/gsm8k", "main", "test", "e53f048856ff4f594e959d75785d2c2d37b678ee"),
    "mmlu": _Hub("cais/mmlu", "all", "test", "c30699e8356da336a370243923dbaf21066bb9fe"),
    "csqa": _Hub(
        "tau/commonsense_qa", None, "validation", "94630fe30dad47192a8546eb75f094926d47e155"
    ),
}


def read(dataset: str, source: Path | None) -> Source:
    """Reads the split that LongGenBench uses (GSM8K and MMLU: test, CSQA: validation).

    Args:
        dataset: ``gsm8k``, ``mmlu`` or ``csqa``.
        source: a JSON-lines or parquet file (GSM8K, CSQA), or a folder of ``<subject>_test.csv``
            files (MMLU; its parent does too); None downloads the data set from the hub.

    Raises:
        ScopeError: the data cannot be had or is not in one of the expected forms.
    """
    if source is None:
        return _read_hub(dataset)
    if not source.exists():
        raise ScopeError(f"--source {source} does not exist")
    if dataset == "mmlu":
        return _read_mmlu_folder(source)
    if not source.is_file():
        raise ScopeError(f"--source {source}: a .jsonl or .parquet file was expected")
    items = _to_items(dataset, _read_rows(source), source.name)
    return Source({"": items}, _local_origin([source]))


def _read_hub(dataset: str) -> Source:
    from datasets import load_dataset

    hub = _HUB[dataset]
    try:
        rows = load_dataset(hub.path, hub.config, split=hub.split, revision=hub.revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ScopeError(
            f"cannot get {hub.path} from the hub ({reason}); give the data with --source"
        ) from error
    origin = {"hub": hub.path, "split": hub.split, "revision": hub.revision}
    if dataset != "mmlu":
        return Source({"": _to_items(dataset, rows, hub.path)}, origin)
    by_subject: dict[str, list[Item]] = {}
    for row in rows:
        item = Item(row["question"], "ABCD"[row["answer"]], tuple(row["choices"]))
        by_subject.setdefault(row["subject"], []).append(item)
    return Source({name: tuple(by_subject[name]) for name in sorted(by_subject)}, origin)


def _read_mmlu_folder(folder: Path) -> Source:
    files = sorted(folder.glob("*_test.csv")) or sorted(folder.glob("test/*_test.csv"))
    if not files:
        raise ScopeError(f"--source {folder}: no <subject>_test.csv files, here or in test/")
    items: dict[str, tuple[Item, ...]] = {}
    for file in files:
        try:
            with file.open(encoding="utf-8", newline="") as lines:
                rows = list(csv.reader(lines))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ScopeError(f"{file}: not a CSV file ({error})") from None
        for number, row in enumerate(rows, start=1):
            if len(row) != 6 or row[5] not in tuple("ABCD"):
                raise ScopeError(
                    f"{file}, row {number}: question, four options and a letter were expected"
                )
        items[file.stem.removesuffix("_test")] = tuple(
            Item(row[0], row[5], tuple(row[1:5])) for row in rows
        )
    return Source(items, _local_origin(files))


def _read_rows(file: Path) -> list[Mapping[str, Any]]:
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


def _to_items(dataset: str, rows: Iterable[Mapping[str, Any]], name: str) -> tuple[Item, ...]:
    convert = _gsm8k_item if dataset == "gsm8k" else _csqa_item
    items = []
    for number, row in enumerate(rows, start=1):
        try:
            item = convert(row)
        except (KeyError, TypeError) as error:
            raise ScopeError(f"{name}, row {number}: not a {dataset} row ({error!r})") from None
        has_gold = item.answer in tuple("ABCDE") if item.options else "####" in item.answer
        if not has_gold:
            raise ScopeError(f"{name}, row {number}: no gold answer; use a split that has them")
        items.append(item)
    return tuple(items)


def _gsm8k_item(row: Mapping[str, Any]) -> Item:
    return Item(row["question"], row["answer"])


def _csqa_item(row: Mapping[str, Any]) -> Item:
    question, choices = row["question"], row.get("choices")
    if choices is None:  # the form of the data set's own site; the hub's is flat
        question, choices = question["stem"], question["choices"]
        return Item(question, row["answerKey"], tuple(choice["text"] for choice in choices))
    return Item(question, row["answerKey"], tuple(choices["text"]))


def _local_origin(files: Iterable[Path]) -> dict[str, str]:
    digest = hashlib.sha256()
    names = []
    for file in files:
        names.append(file.name)
        digest.update(file.read_bytes())
    return {
        "files": names[0] if len(names) == 1 else f"{len(names)} files",
        "sha256": digest.hexdigest(),
    }
