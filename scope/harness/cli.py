"""The command: plan or run every job of a command line, one loaded model for all."""

import sys
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scope.attention.patch import patch
from scope.errors import ScopeError
from scope.evaluation.evaluate import evaluate
from scope.evaluation.results import find_result_folders
from scope.evaluation.tables import print_table
from scope.harness.config import parse_command
from scope.harness.data import load_examples
from scope.harness.jobs import Job, jobs_of
from scope.harness.models import load_config, load_model, load_tokenizer
from scope.harness.plan import make_plan
from scope.harness.run import run_job


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 after one line about bad input."""
    try:
        command = parse_command(arguments)
        jobs = [job for run in command.runs for job in jobs_of(run)]
        if command.dry_run:
            _plan(jobs)
        else:
            _run(jobs)
    except ScopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; start the same command again to go on", file=sys.stderr)
        return 130
    return 0


def _plan(jobs: list[Job]) -> None:
    for job in jobs:
        config, tokenizer = load_config(job.model_path), load_tokenizer(job.model_path)
        examples = load_examples(job, tokenizer, config.max_position_embeddings)
        plan = make_plan(job, config, [len(example.tokens) for example in examples])
        print("\n".join(plan.lines(job)))


def _run(jobs: list[Job]) -> None:
    loaded: dict[tuple[str, ...], tuple[PreTrainedModel, PreTrainedTokenizerBase]] = {}
    for job in jobs:
        key = (job.model_path, job.dtype, job.device, job.attn_implementation)
        if key not in loaded:
            loaded.clear()  # one model at a time
            tokenizer = load_tokenizer(job.model_path)
            loaded[key] = (load_model(*key), tokenizer)
        model, tokenizer = loaded[key]
        with patch(model):
            run = run_job(job, model, tokenizer)
        for warning in run["warnings"]:
            print(f"warning: {warning}", file=sys.stderr)
    _score(jobs)


def _score(jobs: list[Job]) -> None:
    folders = [find_result_folders(job.folder.parent)[0] for job in jobs]
    evaluation = evaluate({folder.path: folder for folder in folders}.values())
    if evaluation.rows:
        print_table(evaluation.rows)
    for message in [*evaluation.errors, *evaluation.warnings]:
        print(f"warning: {message}", file=sys.stderr)
