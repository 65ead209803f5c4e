"""A budget of bytes or tokens per sequence: the C that it leaves beside what else is set."""

from bisect import bisect_left, bisect_right
from dataclasses import replace
from math import ceil

import torch

from scope.cache.plan import CachePlan
from scope.compression import Compression
from scope.errors import ScopeError
from scope.harness.config import RunConfig
from scope.harness.data import load_examples
from scope.harness.jobs import Job, jobs_of
from scope.harness.models import Models

_C = "max_capacity_prompt"


def fitted_jobs(run: RunConfig, models: Models) -> list[Job]:
    """The jobs of a run, in each the largest C by which its sequences keep to the run's budget.

    W, R and all else are as set; methods that read no C must keep to it as they are. Every prompt
    of the data file counts, whichever are run, so that a run of more examples goes on. C + 1 does
    not fit; where tokens are rounded in groups, a C that fills another group might.

    Raises:
        ScopeError: as `jobs_of`, or for a budget that no C keeps to, with the least that one does.
    """
    if run.kv_bytes is None and run.kv_tokens is None:
        return jobs_of(run)
    if run.kv_bytes is not None and run.kv_tokens is not None:
        raise ScopeError("--kv_bytes and --kv_tokens are both the budget of a sequence; give one")
    if _C in run.options:
        raise ScopeError(f"--kv_bytes and --kv_tokens find {_C}; leave it out")
    return [_fitted(run, job, models) for job in jobs_of(run)]


def _fitted(run: RunConfig, job: Job, models: Models) -> Job:
    config, tokenizer = models.config(job.model_path), models.tokenizer(job.model_path)
    every = replace(job, max_num_examples=None)
    examples = load_examples(every, tokenizer, config.max_position_embeddings)
    lengths = [len(example.tokens) for example in examples]

    def cost(compression: Compression) -> float:
        recipe = compression.recipe(job.max_new_tokens)
        plan = CachePlan.make(config, recipe, job.max_new_tokens, lengths)
        return plan.kv_tokens if run.kv_bytes is None else plan.kv_bytes(getattr(torch, job.dtype))

    def with_capacity(capacity: int) -> RunConfig:
        return replace(run, dataset=[job.dataset], options={**run.options, _C: capacity})

    def cost_of(capacity: int) -> float:
        return cost(with_capacity(capacity).compression)

    def is_possible(capacity: int) -> bool:
        try:
            cost_of(capacity)
        except ScopeError:
            return False
        return True

    if _C not in job.compression.options:
        _check(run, job, cost(job.compression))
        return job
    # The default is possible, or there were no job; beyond the longest prompt C changes nothing.
    least = 1 + bisect_left(range(1, job.compression.options[_C]), True, key=is_possible)
    _check(run, job, cost_of(least))
    larger = range(least, max(least, *lengths) + 1)
    found = larger[bisect_right(larger, _budget(run), key=cost_of) - 1]
    return jobs_of(with_capacity(found))[0]


def _budget(run: RunConfig) -> int:
    return (run.kv_tokens if run.kv_bytes is None else run.kv_bytes) or 0


def _check(run: RunConfig, job: Job, least: float) -> None:
    if least > _budget(run):
        name, unit = ("kv_tokens", "tokens per layer and head")
        if run.kv_bytes is not None:
            name, unit = ("kv_bytes", "bytes of keys and values")
        raise ScopeError(
            f"--{name} {_budget(run)} is too small for {job.label} on {job.dataset}, which takes "
            f"at least {ceil(least)} {unit} a sequence; raise it, or lower what else is held"
        )
