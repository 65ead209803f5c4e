"""Result folders on disk, ours and the original's.

::

    <name>/<model>_<C>/              one result folder: one configuration
        gsm8k/<method>.json          one JSON line per prompt, any of gsm8k, mmlu, csqa
        gsm8k/run.json               how it was made (ours only)
        results.csv                  the scores, in the original's form

Nothing that looks wrong is passed over: a line that cannot be read, or a prompt that is there
twice, raises an error with file and line; prompts that are not there yet are listed as missing.
"""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from scope.errors import ScopeError
from scope.recall.scoring import is_answer

ORIGINAL_DATASETS = ("gsm8k", "mmlu", "csqa")
DATASETS = (*ORIGINAL_DATASETS, "recall")

_CONFIGURATION_FOLDER = re.compile(
    r"(?P<name>.+)_decoding_window_(?P<window>\d+)_recent_window_\d+"
)
_MODEL_FOLDER = re.compile(r"(?P<model>.+)_(?P<capacity>\d+)")
_REQUIRED = {"prompt": str, "questions": list, "answers": list, "pred": str}
_OPTIONAL = {"index": int, "generated_tokens": int, "stopped": str}


@dataclass(frozen=True)
class Record:
    """One prompt and what the model wrote; the keys that only our runner writes may be None."""

    line: int
    prompt: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    pred: str
    index: int | None = None
    generated_tokens: int | None = None
    stopped: str | None = None

    @property
    def task(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What was asked: equal in two runs over the same data file, however it was worded."""
        return self.questions, self.answers


@dataclass(frozen=True)
class DatasetResult:
    """All records of one data set in one result folder, in the order of the data file."""

    path: Path
    dataset: str
    records: tuple[Record, ...]
    run: Mapping[str, Any]

    @property
    def missing(self) -> tuple[int, ...]:
        """Rows of the data file without a record, as far as the records or run.json can tell."""
        seen = {record.index for record in self.records if record.index is not None}
        planned = self.run.get("data", {}).get("rows") or range(max(seen, default=-1) + 1)
        return tuple(sorted(set(planned) - seen))


@dataclass(frozen=True)
class ResultFolder:
    """One configuration: ``files`` maps each data set that is there to its JSON-lines file.

    What the configuration was is read from run.json, or else from the original's folder names.
    """

    path: Path
    files: Mapping[str, Path]

    @property
    def name(self) -> str:
        """``method+decoding_metric``, and what tokens compete by where that was chosen."""
        if self._config.keys() >= {"method", "decoding_metric"}:
            score = self._config.get("decoding_score")
            name = f"{self._config['method']}+{self._config['decoding_metric']}"
            return f"{name} ({score})" if score else name
        return self._named.get("name", self.path.resolve().parent.name)

    @property
    def model(self) -> str:
        return self._named.get("model", self.path.resolve().name)

    @property
    def capacity(self) -> int | None:
        """C, the tokens kept of the prompt."""
        return _to_int(self._config.get("max_capacity_prompt", self._named.get("capacity")))

    @property
    def window(self) -> int | None:
        """W, the tokens kept of the generation."""
        return _to_int(self._config.get("decoding_window_size", self._named.get("window")))

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        return next((c for file in self.files.values() if (c := read_run(file).get("config"))), {})

    @cached_property
    def _named(self) -> Mapping[str, str]:
        path = self.path.resolve()
        configuration = _CONFIGURATION_FOLDER.fullmatch(path.parent.name)
        model = _MODEL_FOLDER.fullmatch(path.name)
        return {
            k: v for match in (configuration, model) if match for k, v in match.groupdict().items()
        }


def find_result_folders(root: Path) -> list[ResultFolder]:
    """Every result folder at or below ``root``, sorted by path.

    Raises:
        ScopeError: ``root`` is no folder, or holds no results.
    """
    if not root.is_dir():
        raise ScopeError(
            f"{root} is not a folder; a result folder or a parent of some was expected"
        )
    found: dict[Path, dict[str, Path]] = {}
    for file in sorted(root.rglob("*.json")):
        known = file.parent.name in DATASETS or file.with_name("run.json").exists()
        if file.name == "run.json" or not known:
            continue
        files = found.setdefault(file.parent.parent, {})
        if file.parent.name in files:
            raise ScopeError(f"{file.parent} holds several result files; one was expected")
        files[file.parent.name] = file
    if not found:
        raise ScopeError(
            f"no results below {root}; expected <model>_<C>/<dataset>/<method>.json, "
            f"with dataset one of {', '.join(DATASETS)}"
        )
    return [ResultFolder(path, files) for path, files in sorted(found.items())]


def read_dataset(folder: ResultFolder, dataset: str) -> DatasetResult:
    """Reads one data set of a result folder.

    Raises:
        ScopeError: a broken or duplicate line, named by file and line.
    """
    path = folder.files[dataset]
    records: list[Record] = []
    first_line: dict[object, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            record = _parse_record(line, number, path)
            if dataset == "recall" and not all(map(is_answer, record.answers)):
                raise ScopeError(
                    f"{path}:{number}: not answers as the data set recall has them; name the "
                    f"folder after its own, one of {', '.join(DATASETS)}"
                )
            key = record.prompt if record.index is None else record.index
            if key in first_line:
                raise ScopeError(
                    f"{path}:{number}: the same example as line {first_line[key]}; "
                    "delete one of the two"
                )
            first_line[key] = number
            records.append(record)
    if not records:
        raise ScopeError(f"{path}:1: the file is empty; run the example again")
    if all(record.index is not None for record in records):
        records.sort(key=lambda record: record.index or 0)
    return DatasetResult(path, dataset, tuple(records), read_run(path))


def read_run(result_file: Path) -> Mapping[str, Any]:
    """The run.json beside a result file; empty where there is none."""
    path = result_file.with_name("run.json")
    if not path.exists():
        return {}
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ScopeError(f"{path}: not JSON ({error}); restore it or delete it") from None
    if not isinstance(run, dict) or not all(
        isinstance(run.get(key, {}), dict) for key in ("config", "data", "metrics")
    ):
        raise ScopeError(f"{path}: not the run.json of a run; restore it or delete it")
    return run


def write_results_csv(folder: ResultFolder, scores: Mapping[str, float]) -> Path:
    """Writes the original's results.csv: two lines, CRLF, -1 for a data set that is not there.

    Data sets that the original does not have get a column each where there are any.
    """
    datasets = [*ORIGINAL_DATASETS, *(d for d in sorted(scores) if d not in ORIGINAL_DATASETS)]
    path = folder.path / "results.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset", *datasets])
        writer.writerow([folder.name, *(scores.get(dataset, -1) for dataset in datasets)])
    return path


def _to_int(value: int | str | None) -> int | None:
    return None if value is None else int(value)


def _parse_record(line: bytes, number: int, path: Path) -> Record:
    def broken(what: str) -> ScopeError:
        return ScopeError(f"{path}:{number}: {what}; delete the line and run the example again")

    try:
        row = json.loads(line)
    except ValueError:
        raise broken("not a complete JSON line") from None
    if not isinstance(row, dict):
        raise broken("not a JSON object")
    for key, kind in _REQUIRED.items():
        if not isinstance(row.get(key), kind):
            raise broken(f"key '{key}' is missing or not a {kind.__name__}")
    for key, kind in _OPTIONAL.items():
        if row.get(key) is not None and not isinstance(row[key], kind):
            raise broken(f"key '{key}' is not a {kind.__name__}")
    if not row["answers"] or not all(isinstance(a, str) for a in row["answers"]):
        raise broken("key 'answers' is not a list of texts")
    return Record(
        line=number,
        prompt=row["prompt"],
        questions=tuple(map(str, row["questions"])),
        answers=tuple(row["answers"]),
        pred=row["pred"],
        **{key: row.get(key) for key in _OPTIONAL},
    )
