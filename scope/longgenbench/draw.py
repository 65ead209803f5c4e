"""Draws data files of a task that the project makes itself, and beside each a note how.

    python -m scope.longgenbench.draw ledger
    python -m scope.longgenbench.draw notes --k 48 --level hard --seed 1 --num_prompts 16

The files lie where ``--data_dir data/tasks/<level> --dataset <task> --K <k>`` looks, and are in the
form of `build`. The same arguments give the same file, and fewer prompts its first lines.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scope.errors import ScopeError
from scope.longgenbench.build import write_data
from scope.tasks.made import LEVELS, MadeTask
from scope.tasks.registry import TASKS

_MADE = {name: task for name, task in TASKS.items() if isinstance(task, MadeTask)}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    arguments = _parser().parse_args(argv)
    try:
        for k in arguments.k or map(_MADE[arguments.task].questions, (30, 60)):
            file = draw(
                arguments.task,
                k,
                level=arguments.level,
                seed=arguments.seed,
                num_prompts=arguments.num_prompts,
                out=arguments.out,
            )
            print(f"{file}: {arguments.num_prompts} prompts of {k} questions, {arguments.level}")
    except ScopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def draw(
    name: str,
    k: int,
    *,
    level: str = "easy",
    seed: int = 0,
    num_prompts: int = 64,
    out: Path | None = None,
) -> Path:
    """Writes ``<name>_<k>.jsonl`` and its note, and returns the data file's path.

    Args:
        name: one of the tasks that the project makes itself.
        k: questions per prompt.
        level: one of `LEVELS`.
        seed: another one gives other problems.
        num_prompts: lines of the file.
        out: folder, made where it is missing; None for ``data/tasks/<level>/<name>``.

    Raises:
        ScopeError: bad input, told in one line.
    """
    for option, value in {"k": k, "num_prompts": num_prompts}.items():
        if value < 1:
            raise ScopeError(f"--{option} {value}: at least 1 was expected")
    rows = [_MADE[name].row(k, level, seed, index) for index in range(num_prompts)]
    meta = {"dataset": name, "level": level, "k": k, "seed": seed, "prompts": num_prompts}
    return write_data(out or Path("data/tasks") / level / name, rows, meta)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scope.longgenbench.draw", description=__doc__.splitlines()[0]
    )
    parser.add_argument("task", choices=tuple(_MADE))
    parser.add_argument(
        "--k",
        type=int,
        nargs="+",
        help="questions per prompt; default: those that --K 30 and --K 60 name, for outputs of up "
        "to 4K and up to 8K tokens",
    )
    parser.add_argument("--level", choices=LEVELS, default="easy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_prompts", type=int, default=64)
    parser.add_argument("--out", type=Path, help="folder; default: data/tasks/<level>/<task>")
    return parser


if __name__ == "__main__":
    sys.exit(main())
