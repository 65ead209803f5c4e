"""A budget of bytes or tokens: the largest C that keeps to it, or one line with what would do."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from scope import Compression, ScopeError
from scope.cache.plan import CachePlan
from scope.harness.command_line import parse_command
from scope.harness.fit import fitted_jobs
from scope.harness.jobs import Job
from scope.harness.models import Models
from tests.harness.running import FULL, Run, arguments_of

LENGTHS, STEPS = [44, 46, 48, 50, 52], 40  # words, the instruction's among them
NO_CAPACITY = {"max_capacity_prompts": None}
MODELS = Models()


@pytest.fixture
def fitted(model_folder: Path, data_file: Path, tmp_path: Path) -> Any:
    """The job of a run."""

    def call(**options: Any) -> Job:
        settings = {**NO_CAPACITY, **options}
        command = parse_command(arguments_of(model_folder, data_file, tmp_path, **settings))
        return fitted_jobs(command.runs[0], MODELS)[0]

    return call


def cost(model: Path, job: Job, more: int = 0) -> tuple[int, float]:
    """Bytes and tokens of a sequence, C being so much larger."""
    compression, options = job.compression, dict(job.compression.options)
    options["max_capacity_prompt"] += more
    larger = Compression(job.compression.method, compression.decoding_metric, **options)
    plan = CachePlan.make(MODELS.config(str(model)), larger.recipe(STEPS), STEPS, LENGTHS)
    return plan.kv_bytes(torch.float32), plan.kv_tokens


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"method": "SnapKV"}, 30),
        ({"method": "PyramidKV", "decoding_metric": "adaptive"}, 30),
        ({"method": "ZigZagKV"}, 30),
        ({"method": "H2O", "decoding_metric": "h2o"}, 30),
        ({"pruned_channels": 0.5, "whole_recent": 4}, 30),
        ({**FULL, "method": "StreamingLLM"}, 70),
    ],
    ids=["uniform", "pyramid", "zigzag", "unified", "pruned channels", "whole generation"],
)
def test_the_largest_that_fits(
    fitted: Any, model_folder: Path, options: dict[str, Any], tokens: int
) -> None:
    by_tokens = fitted(**options, kv_tokens=tokens)
    assert cost(model_folder, by_tokens)[1] <= tokens < cost(model_folder, by_tokens, more=1)[1]
    budget = tokens * 2 * 2 * 2 * 8 * 4 + 100
    by_bytes = fitted(**options, kv_bytes=budget)
    assert cost(model_folder, by_bytes)[0] <= budget < cost(model_folder, by_bytes, more=1)[0]


def test_tokens_are_those_of_both_pools(fitted: Any) -> None:
    job = fitted(method="SnapKV", kv_tokens=30)  # of which W are 12
    assert job.compression.options["max_capacity_prompt"] == 18
    assert job.folder.parent.name == "tiny-llama_18"


def test_the_least_is_told_and_taken(fitted: Any) -> None:
    for options in ({"method": "SnapKV"}, FULL):
        with pytest.raises(ScopeError, match="takes at least") as refused:
            fitted(**options, kv_bytes="0.5KiB")
        least = int(re.search(r"at least (\d+) bytes", str(refused.value))[1])
        fitted(**options, kv_bytes=least)
        with pytest.raises(ScopeError, match="is too small for"):
            fitted(**options, kv_bytes=least - 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kv_bytes": 9999, "kv_tokens": 40}, "give one"),
        ({"kv_bytes": 9999, "max_capacity_prompts": 24}, "leave it out"),
        ({"kv_bytes": "64MB"}, "expected a number of bytes, such as 64MiB"),
        ({"kv_tokens": 0}, "must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(fitted: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ScopeError, match=told):
        fitted(**options)


def test_a_run_keeps_to_it(run: Run) -> None:
    folder = run(kv_bytes="8KiB", max_num_examples=1, max_new_tokens=2, **NO_CAPACITY)
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    assert 7 * 2**10 < metrics["kv_bytes_per_sequence"] <= 8 * 2**10
