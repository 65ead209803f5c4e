"""The examples of a data file, ready for the model."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from scope.errors import ScopeError
from scope.harness.jobs import Job
from scope.harness.rows import read_rows
from scope.longgenbench import instructions
from scope.tasks.registry import find_task


@dataclass(frozen=True)
class Example:
    """One prompt.

    Attributes:
        index: row in the data file, from 0.
        prompt: full text for the model, instruction included.
        questions, answers: as in the data file.
        tokens: the prompt's token ids.
    """

    index: int
    prompt: str
    questions: list[str]
    answers: list[str]
    tokens: list[int]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def select_rows(job: Job) -> list[tuple[int, dict[str, Any]]]:
    """The rows that a job runs, each with its number in the data file.

    Raises:
        ScopeError: an unreadable data file, or one of which nothing is left.
    """
    rows = [
        (index, row)
        for index, row in enumerate(read_rows(job.data_file))
        if index not in job.drop_rows
    ]
    if not rows:
        raise ScopeError(f"{job.data_file}: --drop_rows leaves none of its examples")
    return rows[: job.max_num_examples]


def load_examples(
    job: Job, tokenizer: PreTrainedTokenizerBase, context_length: int
) -> list[Example]:
    """The examples of a job, tokenized.

    Args:
        job: what to run.
        tokenizer: the model's.
        context_length: most tokens that the model takes, prompt and generation together.

    Raises:
        ScopeError: an unreadable data file, a row that the data set could not mark, or a
            prompt that leaves no room for the generation.
    """
    instruction = instructions.load(job.instruction_file).get(job.dataset)
    if instruction is None:
        raise ScopeError(
            f"--instruction_file {job.instruction_file}: no entry for the data set {job.dataset}"
        )
    task = find_task(job.dataset)
    room = context_length - job.max_new_tokens
    if job.max_prompt_tokens is not None:
        room = min(room, job.max_prompt_tokens)
    examples = []
    for index, row in select_rows(job):
        prompt = instructions.render_prompt(
            instruction,
            row["prompt"],
            job.prompt_style,
            model_path=job.model_path,
            tokenizer=tokenizer,
        )
        # A chat template has written the special tokens already.
        special = job.prompt_style != "chat"
        tokens = tokenizer(prompt, add_special_tokens=special)["input_ids"]
        if len(tokens) > room and job.truncate_prompts and room > 1:
            tokens = _without_middle(tokens, room, tokenizer)
        if len(tokens) > room:
            raise ScopeError(
                f"{job.data_file}, line {index + 1}: the prompt has {len(tokens)} tokens; of the "
                f"model's context of {context_length}, {job.max_new_tokens} new ones leave "
                f"{max(room, 0)}; lower --max_new_tokens, use shorter prompts, or set "
                "--truncate_prompts true"
            )
        example = Example(index, prompt, row["questions"], row["answers"], tokens)
        try:
            task.check(example)
        except ScopeError as error:
            raise ScopeError(
                f"{job.data_file}, line {index + 1}: {error}; repair it, or say with --dataset "
                "which data set it is"
            ) from None
        examples.append(example)
    return examples


def _without_middle(tokens: list[int], room: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The first and the last half, joined as text and tokenized again, as the original does it."""
    half = room // 2
    text = "".join(
        tokenizer.decode(part, skip_special_tokens=True) for part in (tokens[:half], tokens[-half:])
    )
    return tokenizer(text)["input_ids"][:room]
