"""Result folders on disk, ours and the original's.

::

    <name>/<model>_<C>/              one result folder: one configuration a data set
        gsm8k/<method>.json          one JSON line per prompt, any data set of `scope.tasks`
        gsm8k/run.json               how it was made (ours only)
        results.csv                  the scores, in the original's form

``<C>`` is ``full`` where a method reads none. Nothing that looks wrong is passed over: a line that
cannot be read, or a prompt that is there twice, raises an error with file and line; prompts that
are not there yet are listed as missing.
"""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from scope.errors import ScopeError
from scope.evaluation.runfile import RunFile, is_count, read_run
from scope.tasks.registry import TASKS, published_names, recognise
from scope.tasks.task import Task

_CONFIGURATION_FOLDER = re.compile(
    r"(?P<name>.+)_decoding_window_(?P<window>\d{1,18})_recent_window_\d+"
)
_MODEL_FOLDER = re.compile(r"(?P<model>.+)_(?:(?P<capacity>\d{1,18})|full)")
# In a data set's folder: parts of a result file that several processes are writing.
SLICES = "slices"
_REQUIRED = {"prompt": str, "questions": list, "answers": list, "pred": str}
_COUNTS = ("index", "sample", "generated_tokens")


@dataclass(frozen=True)
class Record:
    """One prompt and what the model wrote; the keys that only our runner writes may be None."""

    line: int
    prompt: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    pred: str
    index: int | None = None
    sample: int | None = None
    generated_tokens: int | None = None
    stopped: str | None = None

    @property
    def task(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What was asked: equal in two runs over the same data file, however it was worded."""
        return self.questions, self.answers


@dataclass(frozen=True)
class DatasetResult:
    """All records of one data set in one result folder, in the order of the data file.

    What the configuration was is read from the run.json beside them, or else from the original's
    folder names. ``problems`` says what lies there and was not read.
    """

    path: Path
    dataset: str
    task: Task
    records: tuple[Record, ...]
    run: RunFile
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``method+decoding_metric``, and what tokens compete by where that was chosen."""
        return self.run.label or self._named.get("name") or self._folder.parent.name

    @property
    def questions(self) -> int:
        """Of the prompt that asks most."""
        return max(len(record.answers) for record in self.records)

    @property
    def is_full_cache(self) -> bool:
        """Whether nothing was left out, under any fidelity."""
        return self.name in ("ALLKV+None", "ALLKV+None (upstream)")

    @property
    def is_upstream(self) -> bool:
        """Whether the published code was followed in everything."""
        return self.name.endswith("upstream)")

    @property
    def model(self) -> str:
        return self._named.get("model") or self._folder.name

    @property
    def capacity(self) -> int | None:
        """C, the tokens kept of the prompt."""
        return self._size("max_capacity_prompt", "capacity")

    @property
    def window(self) -> int | None:
        """W, the tokens kept of the generation."""
        return self._size("decoding_window_size", "window")

    @property
    def by_problem(self) -> list[list[Record]]:
        """The records by what was asked: of several texts after one prompt, all together."""
        by_problem: dict[object, list[Record]] = {}
        for record in self.records:
            key = record.prompt if record.index is None else record.index
            by_problem.setdefault(key, []).append(record)
        return list(by_problem.values())

    @property
    def missing(self) -> list[tuple[int, int]]:
        """First and last row of each gap, as far as the records or run.json can tell."""
        seen = sorted({r.index for r in self.records if r.index is not None})
        if self.run.rows is None:
            return [(a + 1, b - 1) for a, b in pairwise([-1, *seen]) if b - a > 1]
        spans: list[tuple[int, int]] = []
        for row in sorted(set(self.run.rows) - set(seen)):
            if spans and row == spans[-1][1] + 1:
                spans[-1] = spans[-1][0], row
            else:
                spans.append((row, row))
        return spans

    def _size(self, key: str, part: str) -> int | None:
        own, named = self.run.count("config", key), self._named.get(part)
        return int(named) if own is None and named else own

    @property
    def _folder(self) -> Path:
        return self.path.resolve().parent.parent

    @cached_property
    def _named(self) -> Mapping[str, str]:
        configuration = _CONFIGURATION_FOLDER.fullmatch(self._folder.parent.name)
        model = _MODEL_FOLDER.fullmatch(self._folder.name)
        parts = [match.groupdict() for match in (configuration, model) if match]
        return {key: text for part in parts for key, text in part.items() if text}


@dataclass(frozen=True)
class ResultFolder:
    """``files`` maps each data set that is there to its JSON-lines files: one, and strays."""

    path: Path
    files: Mapping[str, tuple[Path, ...]]


def find_result_folders(root: Path) -> list[ResultFolder]:
    """Every result folder at or below ``root``, sorted by path.

    Raises:
        ScopeError: ``root`` is no folder, or holds no results.
    """
    if not root.is_dir():
        raise ScopeError(
            f"{root} is not a folder; a result folder or a parent of some was expected"
        )
    found: dict[Path, dict[str, tuple[Path, ...]]] = {}
    for file in sorted(root.rglob("*.json")):
        known = file.parent.name in TASKS or file.with_name("run.json").exists()
        is_slice = SLICES in file.relative_to(root).parts
        if file.name == "run.json" or not known or is_slice or not file.is_file():
            continue
        files = found.setdefault(file.parent.parent, {})
        files[file.parent.name] = (*files.get(file.parent.name, ()), file)
    if not found:
        raise ScopeError(
            f"no results below {root}; expected <model>_<C>/<dataset>/<method>.json, "
            f"with dataset one of {', '.join(TASKS)}"
        )
    return [ResultFolder(path, files) for path, files in sorted(found.items())]


def read_dataset(folder: ResultFolder, dataset: str) -> DatasetResult:
    """Reads one data set of a result folder; of several files, the one that run.json names.

    Raises:
        ScopeError: no file of it can be read, or none is known to be the one; by file and line.
    """
    files = folder.files[dataset]
    run = read_run(files[0])
    named = [file for file in files if file.stem == run.text("config", "method")]
    problems = [] if run.problem is None else [run.problem]
    read: list[tuple[Path, Task, tuple[Record, ...]]] = []
    for file in named or files:
        try:
            read.append((file, *_read_file(file, dataset)))
        except (ScopeError, OSError) as error:
            problems.append(str(error))
    if not read:
        raise ScopeError("; ".join(problems))
    if len(read) > 1:
        names = ", ".join(file.name for file, _, _ in read)
        raise ScopeError(f"{files[0].parent} holds several result files, {names}; keep one")
    if named:
        problems += [f"{file}: not the result that run.json names" for file in {*files} - {*named}]
    path, task, records = read[0]
    return DatasetResult(path, dataset, task, records, run, tuple(sorted(problems)))


def _read_file(path: Path, dataset: str) -> tuple[Task, tuple[Record, ...]]:
    task = TASKS.get(dataset)
    records: list[Record] = []
    first_line: dict[object, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            record = _parse_record(line, number, path)
            try:
                task = task or recognise(record)
                task.check(record)
            except ScopeError as error:
                raise ScopeError(
                    f"{path}:{number}: {error}; a folder is named after its own data set, one of "
                    f"{', '.join(TASKS)}"
                ) from None
            key = record.prompt if record.index is None else (record.index, record.sample or 0)
            if key in first_line:
                raise ScopeError(
                    f"{path}:{number}: the same example as line {first_line[key]}; "
                    "delete one of the two"
                )
            first_line[key] = number
            records.append(record)
    if task is None or not records:
        raise ScopeError(f"{path}:1: the file is empty; run the example again")
    if all(record.index is not None for record in records):
        records.sort(key=lambda record: (record.index or 0, record.sample or 0))
    return task, tuple(records)


def write_results_csv(folder: ResultFolder, name: str, scores: Mapping[str, float]) -> Path:
    """Writes the original's results.csv: two lines, CRLF, -1 for a data set that is not there.

    Data sets that the original does not have get a column each where there are any.
    """
    published = published_names()
    datasets = [*published, *(dataset for dataset in sorted(scores) if dataset not in published)]
    path = folder.path / "results.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset", *datasets])
        writer.writerow([name, *(scores.get(dataset, -1) for dataset in datasets)])
    return path


def _parse_record(line: bytes, number: int, path: Path) -> Record:
    def broken(what: str) -> ScopeError:
        return ScopeError(f"{path}:{number}: {what}; delete the line and run the example again")

    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise broken("not a complete JSON line") from None
    if not isinstance(row, dict):
        raise broken("not a JSON object")
    for key, kind in _REQUIRED.items():
        if not isinstance(row.get(key), kind):
            raise broken(f"key '{key}' is missing or not a {kind.__name__}")
    for key in _COUNTS:
        if row.get(key) is not None and not is_count(row[key]):
            raise broken(f"key '{key}' is not a whole number")
    if not isinstance(row.get("stopped"), str | None):
        raise broken("key 'stopped' is not a text")
    if not row["answers"] or not all(isinstance(a, str) for a in row["answers"]):
        raise broken("key 'answers' is not a list of texts")
    return Record(
        line=number,
        prompt=row["prompt"],
        questions=tuple(map(str, row["questions"])),
        answers=tuple(row["answers"]),
        pred=row["pred"],
        **{key: row.get(key) for key in (*_COUNTS, "stopped")},
    )
