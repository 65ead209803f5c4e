"""Builds a LongGenBench data file and, beside it, a note of how it was made.

    python -m scope.longgenbench.build gsm8k --k 30
    python -m scope.longgenbench.build mmlu --k 4 --source mmlu/ --out data/small

``<dataset>_<K>.jsonl`` has one prompt a line: ``prompt``, ``questions``, ``answers`` (and ``task``
for MMLU, one prompt per subject). ``<dataset>_<K>.meta.json`` has the source's revision or hash,
style, K, seed, and the data file's sha256.
"""

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scope.errors import ScopeError
from scope.longgenbench import styles
from scope.tasks.numbered import NumberedTask
from scope.tasks.registry import TASKS
from scope.tasks.sources import Item, Source


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    arguments = _parser().parse_args(argv)
    try:
        file = build(
            arguments.dataset,
            arguments.k,
            style=arguments.style,
            source=arguments.source,
            prompt_path=arguments.prompt_path,
            out=arguments.out,
            seed=arguments.seed,
        )
    except ScopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    meta = read_meta(file)
    print(f"{file}: {meta['prompts']} prompts of {arguments.k} questions, {arguments.style} style")
    return 0


def build(
    dataset: str,
    k: int,
    *,
    style: str = "fixed",
    source: Path | None = None,
    prompt_path: Path | None = None,
    out: Path | None = None,
    seed: int | None = None,
) -> Path:
    """Writes ``<dataset>_<k>.jsonl`` and its note, and returns the data file's path.

    Args:
        dataset: ``gsm8k``, ``mmlu`` or ``csqa``, or another numbered one.
        k: questions per prompt; questions left over after the last full prompt are not used.
            MMLU has one prompt per subject, with that subject's first ``k`` questions.
        style: ``fixed`` or ``upstream``, see ``styles``.
        source: local files, see the data set's ``read``; None for the hub.
        prompt_path: demonstrations other than our own; ``upstream`` needs the published ones.
        out: folder, made where it is missing; None for ``data/LongGenBench/<dataset>``, where
            run_longgenbench.py looks.
        seed: shuffles the questions (within a subject) first; None keeps the source's order.

    Raises:
        ScopeError: bad input, told in one line.
    """
    if k < 1:
        raise ScopeError(f"--k {k}: at least 1 question a prompt was expected")
    task = _numbered_tasks()[dataset]
    write = styles.load(style, task, prompt_path)
    if source is not None and not source.exists():
        raise ScopeError(f"--source {source} does not exist")
    read = task.read(source)
    rows = [_row(write, subject, items) for subject, items in _prompts(read, k, seed)]
    meta = {
        "dataset": dataset,
        "style": style,
        "k": k,
        "seed": seed,
        "prompts": len(rows),
        "source": dict(read.origin),
        "demonstrations": prompt_path.name if prompt_path else "own",
    }
    return write_data(out or Path("data/LongGenBench") / dataset, rows, meta)


def write_data(out: Path, rows: Sequence[Mapping[str, Any]], meta: Mapping[str, Any]) -> Path:
    """Writes ``<dataset>_<k>.jsonl`` and its note into a folder; returns the data file's path.

    Args:
        out: the folder, made where it is missing.
        rows: one prompt each.
        meta: the note, with ``dataset`` and ``k``; the data file's sha256 is added.

    Raises:
        ScopeError: the folder cannot be written.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    meta = {**meta, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    file = out / f"{meta['dataset']}_{meta['k']}.jsonl"
    try:
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", newline="\n")
        _meta_path(file).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ScopeError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    return file


def read_meta(data_file: Path) -> dict[str, Any] | None:
    """The note beside a data file; None where there is none (a published or hand-made file).

    Raises:
        ScopeError: the note is broken.
    """
    path = _meta_path(data_file)
    if not path.exists():
        return None
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise ScopeError(f"{path}: not a JSON object; build the data file again or delete this")
    return meta


def _numbered_tasks() -> dict[str, NumberedTask]:
    return {name: task for name, task in TASKS.items() if isinstance(task, NumberedTask)}


def _prompts(source: Source, k: int, seed: int | None) -> Iterator[tuple[str, Sequence[Item]]]:
    generator = random.Random(seed)
    for subject, items in source.items.items():
        if len(items) < k:
            raise ScopeError(
                f"{subject or 'the source'} has {len(items)} questions, less than one prompt "
                f"of {k}; choose a smaller --k"
            )
        if seed is not None:
            items = generator.sample(items, len(items))
        for place in range(1 if subject else len(items) // k):
            yield subject, items[place * k : (place + 1) * k]


def _row(write: styles.Writer, subject: str, items: Sequence[Item]) -> dict[str, Any]:
    prompt, questions = write(subject, items)
    task = {"task": subject} if subject else {}
    return {
        **task,
        "prompt": prompt,
        "questions": questions,
        "answers": [item.answer for item in items],
    }


def _meta_path(data_file: Path) -> Path:
    return data_file.with_suffix(".meta.json")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scope.longgenbench.build", description=__doc__.splitlines()[0]
    )
    parser.add_argument("dataset", choices=tuple(_numbered_tasks()))
    parser.add_argument("--k", type=int, required=True, help="questions per prompt")
    parser.add_argument("--style", choices=styles.STYLES, default="fixed")
    parser.add_argument(
        "--source",
        type=Path,
        help="local .jsonl or .parquet (gsm8k, csqa) or folder of CSVs (mmlu); default: the hub",
    )
    parser.add_argument("--prompt_path", type=Path, help="demonstrations; default: our own")
    parser.add_argument("--out", type=Path, help="folder; default: data/LongGenBench/<dataset>")
    parser.add_argument("--seed", type=int, help="shuffle the questions; default: source order")
    return parser


if __name__ == "__main__":
    sys.exit(main())
