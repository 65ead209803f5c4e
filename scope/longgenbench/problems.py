"""Builds a data file of problems with boxed answers, one problem a prompt, and a note beside it.

    python -m scope.longgenbench.problems math500
    python -m scope.longgenbench.problems aime25 --source aime25.jsonl

They are read from the hub at one commit, or from a local ``.jsonl`` or ``.parquet`` file with
``problem`` (or ``question``) and ``answer``. The number of rows and a local file's SHA-256 are
compared with those of the hub's file, and a difference told: other copies are in use.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scope.errors import ScopeError
from scope.longgenbench.build import write_data
from scope.tasks import sources
from scope.tasks.boxed import BoxedTask
from scope.tasks.registry import TASKS

_BOXED = {name: task for name, task in TASKS.items() if isinstance(task, BoxedTask)}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    arguments = _parser().parse_args(argv)
    try:
        file, differences = build(arguments.dataset, arguments.source, arguments.out)
    except ScopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for difference in differences:
        print(f"warning: {difference}", file=sys.stderr)
    print(file)
    return 0


def build(
    dataset: str, source: Path | None = None, out: Path | None = None
) -> tuple[Path, list[str]]:
    """Writes ``<dataset>_1.jsonl`` and its note.

    Args:
        dataset: one with boxed answers.
        source: a local file; None for the hub.
        out: folder, made where it is missing; None for ``data/LongGenBench/<dataset>``.

    Returns:
        The data file's path, and how the source differs from what is known of the data set.

    Raises:
        ScopeError: bad input, told in one line.
    """
    task = _BOXED[dataset]
    if source is None:
        rows, origin = sources.read_hub(task.hub)
    elif not source.is_file():
        raise ScopeError(f"--source {source}: a .jsonl or .parquet file was expected")
    else:
        rows, origin = sources.read_rows(source), sources.local_origin([source])
    data = []
    for number, row in enumerate(rows, start=1):
        try:
            item = task.item(row)
        except (KeyError, TypeError):
            raise ScopeError(
                f"{source or task.hub.path}, row {number}: problem and answer were expected"
            ) from None
        data.append(
            {"prompt": item.question, "questions": [item.question], "answers": [item.answer]}
        )
    if not data:
        raise ScopeError(f"{source or task.hub.path} is empty")
    differences = []
    if len(data) != task.rows:
        differences.append(f"{len(data)} problems, and {dataset} has {task.rows}")
    if source is not None and origin["sha256"] != task.sha256:
        differences.append(
            f"{source} is another file than the hub's, whose SHA-256 begins with "
            f"{task.sha256[:8]}; compare scores only with runs over this one"
        )
    meta = {"dataset": dataset, "k": 1, "prompts": len(data), "source": dict(origin)}
    return write_data(out or Path("data/LongGenBench") / dataset, data, meta), differences


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scope.longgenbench.problems", description=__doc__.splitlines()[0]
    )
    parser.add_argument("dataset", choices=tuple(_BOXED))
    parser.add_argument("--source", type=Path, help="local .jsonl or .parquet; default: the hub")
    parser.add_argument("--out", type=Path, help="folder; default: data/LongGenBench/<dataset>")
    return parser


if __name__ == "__main__":
    sys.exit(main())
