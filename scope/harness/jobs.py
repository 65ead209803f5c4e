"""What exactly a run does: every choice that was left open is made here, once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from scope.compression import Compression
from scope.errors import ScopeError
from scope.harness.config import BatchSize, RunConfig
from scope.harness.devices import check_device
from scope.harness.folders import default_save_dir
from scope.harness.rows import questions_per_prompt
from scope.tasks.registry import TASKS, find_task, published_names
from scope.tasks.task import Task

_DEFAULT_K = 30
_FULL = Path("full")  # for --compare_with

# Longest prompts of the original, by a part of the model's name.
_PUBLISHED_PROMPT_LIMITS = {
    "llama2": 3950,
    "llama-2": 3950,
    "llama3-": 7950,
    "llama-3-": 7950,
    "llama3.": 130000,
    "llama-3.": 130000,
    "mistral": 31500,
}


_LEAST = {
    "batch_size": 1,
    "max_new_tokens": 1,
    "max_num_examples": 1,
    "max_prompt_tokens": 1,
    "K": 1,
    "min_new_tokens": 0,
    "drop_rows": 0,
    "seed": 0,
    "top_k": 0,
    "num_samples": 1,
    "kv_bytes": 1,
    "kv_tokens": 1,
}


@dataclass(frozen=True)
class Job:
    """One data file under one configuration, with nothing left open.

    Attributes:
        dataset: name of the data set.
        data_file: JSON lines.
        folder: where the result file and run.json go.
        compression: what to keep.
        rows: first example of a slice, and the one after its last; None for all of them. What a
            slice writes are lines of the whole job's result file.
        sampling: temperature, top_k and top_p that tokens are drawn with; empty to take the
            likeliest.
    """

    model_path: str
    dataset: str
    data_file: Path
    folder: Path
    compression: Compression
    max_new_tokens: int
    min_new_tokens: int
    batch_size: BatchSize
    dtype: str
    device: str
    attn_implementation: str
    seed: int
    sampling: Mapping[str, float]
    num_samples: int
    max_num_examples: int | None
    drop_rows: tuple[int, ...]
    instruction_file: Path | None
    prompt_style: str
    truncate_prompts: bool
    max_prompt_tokens: int | None
    eos: str
    compare_with: Path | None
    rows: tuple[int, int] | None = None

    @property
    def result_file(self) -> Path:
        return self.folder / f"{self.compression.method}.json"

    @property
    def loading(self) -> tuple[str, str, str, str]:
        """What the loaded model depends on."""
        return self.model_path, self.dtype, self.device, self.attn_implementation

    @property
    def label(self) -> str:
        return self.compression.label

    def config(self) -> dict[str, Any]:
        """All that may change the result, as JSON, with the compression's fields on top level."""
        plain = dict(vars(self))
        del plain["folder"], plain["compare_with"], plain["rows"]
        plain |= plain.pop("compression").settings()
        # A greedy run's is what it was before there was another.
        sampling, samples = plain.pop("sampling"), plain.pop("num_samples")
        plain |= {**sampling, "num_samples": samples} if sampling else {}
        return json.loads(json.dumps(plain, default=str))


def jobs_of(run: RunConfig) -> list[Job]:
    """The jobs of a run, in order.

    Raises:
        ScopeError: for settings that cannot be run.
    """
    if not run.use_cache:
        raise ScopeError("--use_cache false: compression happens in the cache; leave it true")
    for name, least in _LEAST.items():
        value = getattr(run, name)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and number < least:
                raise ScopeError(f"--{name} is {number}; it must be at least {least}")
    _check_sampling(run)
    return [_job(run, dataset) for dataset in _datasets(run)]


def _datasets(run: RunConfig) -> list[str]:
    if run.data_file is None:
        chosen = run.dataset or published_names()
    elif run.dataset:
        chosen = run.dataset
    else:
        chosen = [name for name in TASKS if run.data_file.name.lower().startswith(name)]
        if not chosen:
            raise ScopeError(
                f"--data_file {run.data_file}: say with --dataset which of {', '.join(TASKS)} it is"
            )
    for name in chosen:
        find_task(name)
    if run.data_file is not None and len(chosen) > 1:
        raise ScopeError("--data_file goes with one --dataset")
    return chosen


def _check_sampling(run: RunConfig) -> None:
    if not 0 <= run.temperature < float("inf"):
        raise ScopeError(f"--temperature is {run.temperature}; it must be a number from 0 on")
    if not 0 < run.top_p <= 1:
        raise ScopeError(f"--top_p is {run.top_p}; it must be above 0, and at most 1")
    drawn = {"top_k": run.top_k > 0, "top_p": run.top_p < 1, "num_samples": run.num_samples > 1}
    for name, given in drawn.items():
        if given and run.temperature == 0:
            raise ScopeError(
                f"--{name} is {getattr(run, name)}, and at temperature 0 nothing is drawn; give a "
                "--temperature above 0 or leave it out"
            )


def _job(run: RunConfig, dataset: str) -> Job:
    upstream = run.fidelity.lower() == "upstream"
    compression = run.compression
    task = find_task(dataset)
    questions = task.questions(run.K if run.K is not None else _DEFAULT_K)
    data_file = run.data_file or run.data_dir / dataset / f"{dataset}_{questions}.jsonl"
    k = _k(run, task, data_file)
    save_dir = run.save_dir or default_save_dir(run, compression)
    capacity = compression.options.get("max_capacity_prompt", "full")
    model_name = Path(run.model_path).name.lower().removesuffix(".gguf")
    device = run.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    dtype = "float16" if upstream else "float32" if device == "cpu" else "bfloat16"
    max_new_tokens = run.max_new_tokens or task.max_new_tokens(k, upstream)
    min_new_tokens = _or(run.min_new_tokens, 1 if upstream else 0)
    if min_new_tokens > max_new_tokens:
        raise ScopeError(
            f"--min_new_tokens {min_new_tokens} is more than the {max_new_tokens} new tokens that "
            "there may be; lower it or raise --max_new_tokens"
        )
    drop_rows = task.published_drops if upstream else ()
    return Job(
        model_path=run.model_path,
        dataset=dataset,
        data_file=data_file,
        folder=save_dir / f"{model_name}_{capacity}" / dataset,
        compression=compression,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        batch_size=run.batch_size,
        dtype=run.dtype or dtype,
        device=device,
        attn_implementation=run.attn_implementation,
        seed=run.seed,
        sampling=_sampling(run),
        num_samples=run.num_samples,
        max_num_examples=run.max_num_examples,
        drop_rows=tuple(_or(run.drop_rows, drop_rows)),
        instruction_file=run.instruction_file,
        prompt_style=run.prompt_style or ("upstream" if upstream else "plain"),
        truncate_prompts=_or(run.truncate_prompts, upstream),
        max_prompt_tokens=_or(run.max_prompt_tokens, _prompt_limit(model_name, upstream)),
        eos=run.eos or ("tokenizer" if upstream else "model"),
        compare_with=_compare_with(run, dataset),
    )


def _compare_with(run: RunConfig, dataset: str) -> Path | None:
    """The file itself, or that of the full cache with the same settings; its own is None."""
    if run.compare_with != _FULL:
        return run.compare_with
    full = replace(
        run,
        method="ALLKV",
        decoding_metric="None",
        budget=None,
        decoding_score=None,
        compare_with=None,
        options={},
        fidelity_overrides={},
    )
    if run.compression.settings() == full.compression.settings():
        return None
    return _job(full, dataset).result_file


def _sampling(run: RunConfig) -> dict[str, float]:
    if run.temperature == 0:
        return {}
    return {"temperature": run.temperature, "top_k": run.top_k, "top_p": run.top_p}


def _k(run: RunConfig, task: Task, data_file: Path) -> int:
    """The K that T follows: that of --data_file, or else what was asked for.

    Raises:
        ScopeError: a data file of another data set or K.
    """
    asked = run.K if run.K is not None else _DEFAULT_K
    if run.data_file is not None:
        expected = None if run.K is None else task.questions(run.K)
        return task.k(questions_per_prompt(data_file, task.name, expected))
    if data_file.exists():
        questions_per_prompt(data_file, task.name, task.questions(asked))
    return asked


def _prompt_limit(model_name: str, upstream: bool) -> int | None:
    if not upstream:
        return None
    limits = (limit for part, limit in _PUBLISHED_PROMPT_LIMITS.items() if part in model_name)
    return next(limits, None)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
