"""Running jobs: see what is there, generate what is missing, say what really happened."""

import shutil
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from scope.attention.patch import patch
from scope.cache.plan import CachePlan
from scope.evaluation.results import SLICES
from scope.harness.agreement import FULL_CACHE, Agreement, agreement, summary
from scope.harness.batch import first_batch_size, halving
from scope.harness.data import Example, file_hash
from scope.harness.found import Found, config_of, examples_of
from scope.harness.generating import generate_missing
from scope.harness.jobs import Job
from scope.harness.lock import locked
from scope.harness.models import Models, check_loadable
from scope.harness.plan import check_plan
from scope.harness.progress import progress
from scope.harness.results import ResultFile, check_writable, key_of
from scope.harness.starts import new_start, speed
from scope.harness.summary import idle_compression, totals
from scope.longgenbench.build import read_meta

# Seconds until a process that is ending has let go of its folder.
_PATIENCE = 60


def check_job(job: Job, models: Models, coming: Collection[Path] = ()) -> None:
    """See that a job can be run, as far as that can be seen without its weights.

    Args:
        job: what is to be run.
        models: the command's.
        coming: result files that will be there when the job begins.

    Raises:
        ScopeError: for bad input, or a result folder of another configuration.
    """
    found = Found.look(job, examples_of(job, models))
    if found.finished:
        return
    check_plan(job, models.config(job.model_path))
    check_loadable(job.model_path, job.attn_implementation)
    if job.compare_with is not None and job.compare_with.resolve() not in coming:
        found.reference_texts()
    check_writable(job.folder)


def join_slices(job: Job, slices: Sequence[Job], models: Models) -> None:
    """Put what slices of a job have written into its own folder, and remove theirs.

    The order does not matter, and neither does being killed: `run_jobs`, which comes next, finds
    what is there.

    Args:
        job: the whole.
        slices: its slices; one that was joined before is passed over.
        models: the command's.

    Raises:
        ScopeError: a folder of another configuration or in use, or one that cannot be written.
    """
    examples = examples_of(job, models)
    with locked(job.folder, patience=_PATIENCE):
        found = Found.look(job, examples)
        run, done = found.run, set(found.rows)
        result_file = found.result_file
        parts = [part for part in slices if part.result_file.exists()]
        result_file.cut()
        for part in parts:
            theirs = Found.look(part, examples).run
            starts = run.setdefault("starts", [])
            starts += [start for start in theirs.get("starts", []) if start not in starts]
            run["metrics"] = theirs.get("metrics", {}) | run.get("metrics", {}) | speed(starts)
            found.run_file.write(run)
            for record in ResultFile(part.result_file).records():
                if (key := key_of(record)) not in done:
                    done.add(key)
                    result_file.append(record)
        for part in parts:
            shutil.rmtree(part.folder)
        with suppress(OSError):
            (job.folder / SLICES).rmdir()  # where others are left, so is the folder


def run_jobs(jobs: Sequence[Job], models: Models, patience: float = 0) -> list[dict[str, Any]]:
    """Generate what is missing of some jobs' results, all in one batch.

    Each example is written as it ends, and the lines are put in order in the end. The batch has one
    size and slots for every prompt, whatever is done already, so an interrupted run gives the same
    files as one that ran through; `Session` says what is left to rounding. Where nothing is
    missing, nothing is loaded or written. A run of more examples than before goes on; one of fewer
    leaves those that are there.

    Args:
        jobs: what to run, one or several that `can_share_a_batch`.
        models: the command's.
        patience: seconds to wait for another process to leave a folder.

    Returns:
        What each run.json holds in the end.

    Raises:
        ScopeError: for bad input, a result folder of another configuration or in use, or one that
            cannot be written.
    """
    examples = [examples_of(job, models) for job in jobs]

    def look() -> list[Found]:
        return list(map(Found.look, jobs, examples))

    founds = look()
    if not all(found.finished for found in founds):
        with ExitStack() as folders:
            for job in jobs:
                folders.enter_context(locked(job.folder, patience))
            founds = look()  # another process may have held a folder until now
            _complete(founds, models)
    return [found.run for found in founds]


def _complete(founds: Sequence[Found], models: Models) -> None:
    """Do what is missing, and bring each run.json up to date."""
    unfinished = [found for found in founds if not found.finished]
    for found in unfinished:
        if found.missing or found.to_compare:
            models.model(*found.job.loading)  # whose errors come before anything is written
    references = [found.reference_texts() for found in unfinished]
    incomplete = [found for found in unfinished if found.missing]
    for found in unfinished:
        _describe(found)
    for found in incomplete:
        _start(found, [other.job for other in incomplete if other is not found])
    if incomplete:
        job = incomplete[0].job
        torch.manual_seed(job.seed)
        with patch(models.model(*job.loading)) as model:
            generate_missing(founds, model, models.tokenizer(job.model_path))
    for found, reference in zip(unfinished, references, strict=True):
        _end(found, models, reference)


def _describe(found: Found) -> None:
    job, run = found.job, found.run
    run["label"] = job.label
    run["data"] = {
        "file": str(job.data_file),
        "sha256": file_hash(job.data_file),
        "rows": sorted({e.index for e in found.wanted} | {index for index, _ in found.rows}),
        "meta": read_meta(job.data_file),
    }
    run.setdefault("metrics", {})


def _start(found: Found, beside: Sequence[Job]) -> None:
    job, run = found.job, found.run
    run["config"] = config_of(job)
    run["metrics"].pop("agreement", None)  # it will be of more examples
    run.setdefault("starts", []).append(new_start(job, beside))
    found.run_file.write(run)
    found.result_file.cut()


def _end(found: Found, models: Models, reference: list[list[int]] | None) -> None:
    job, run, result_file = found.job, found.run, found.result_file
    result_file.sort()
    records = result_file.records()
    run["metrics"] |= totals(records)
    run["warnings"] = idle_compression(job, records)
    if reference is not None:
        with patch(models.model(*job.loading)) as model:
            run["metrics"]["agreement"] = _agreement(job, model, found.examples, reference)
    found.run_file.write(run)


def _agreement(
    job: Job, model: PreTrainedModel, examples: list[Example], texts: list[list[int]]
) -> dict[str, Any]:
    prompts = [example.tokens for example in examples]
    everything = FULL_CACHE.recipe(job.max_new_tokens)
    beside = CachePlan.make(
        model.config, everything, job.max_new_tokens, [max(map(len, prompts))]
    ).row_bytes(model.dtype)
    batch_size = first_batch_size(job, model, prompts, extra_bytes=beside)
    compared: list[Agreement] = []
    with progress(f"{job.label} against the full cache", len(examples)) as bar:

        def compare_rest(batch_size: int) -> None:
            while len(compared) < len(examples):
                batch = slice(len(compared), len(compared) + batch_size)
                compared.extend(
                    agreement(
                        model, job.compression, prompts[batch], texts[batch], job.max_new_tokens
                    )
                )
                bar.update(len(prompts[batch]))

        halving(batch_size, compare_rest)
    return {"compared_with": str(job.compare_with)} | summary(compared)
