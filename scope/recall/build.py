"""Writes recall prompts and gold answers as JSON lines, one prompt a line.

    python -m scope.recall.build --K 32 --seed 0 --num_prompts 64 --out data/recall.jsonl

Keys of a line: ``prompt``, the text for the tokenizer, which puts ``<bos>`` before it;
``questions``, the records in the order in which they are to be answered; ``answers``, the gold
answers in the same order, each beginning with its record.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TypedDict

import numpy as np

from scope.errors import ScopeError
from scope.recall.task import RECORD_FIELDS, RecallTask
from scope.recall.vocabulary import VOCABULARY


class RecallRow(TypedDict):
    """One prompt with its questions and gold answers, all as text."""

    prompt: str
    questions: list[str]
    answers: list[str]


def build_rows(task: RecallTask, seed: int, num_prompts: int) -> list[RecallRow]:
    """Fresh examples; the same arguments give the same rows.

    Raises ScopeError when ``seed`` is negative or ``num_prompts`` is not positive.
    """
    if seed < 0:
        raise ScopeError(f"the seed must not be negative, not {seed}")
    if num_prompts < 1:
        raise ScopeError(f"the number of prompts must be at least 1, not {num_prompts}")
    prompts, answers = task.sample(np.random.default_rng(seed), num_prompts)
    return [
        RecallRow(
            prompt=_text(prompt[1:]),
            questions=[_text(line[:RECORD_FIELDS]) for line in lines],
            answers=[_text(line) for line in lines],
        )
        for prompt, lines in zip(prompts, answers, strict=True)
    ]


def _text(tokens: np.ndarray) -> str:
    return " ".join(VOCABULARY[token] for token in tokens)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scope.recall.build",
        description="Write prompts and gold answers of the synthetic recall task as JSON lines.",
    )
    task = RecallTask()
    parser.add_argument("--K", type=int, default=task.records, help="records in a prompt")
    parser.add_argument(
        "--filler", type=int, default=task.filler, help="letters that each answer spells"
    )
    parser.add_argument(
        "--hubs", type=int, default=task.hubs, help="early answers that the others refer to"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_prompts", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    options = parser.parse_args(arguments)
    try:
        task = RecallTask(options.K, options.filler, options.hubs)
        rows = build_rows(task, options.seed, options.num_prompts)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    except (ScopeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.num_prompts} prompts of {options.K} records in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
