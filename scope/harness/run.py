"""Running one job: generate, record, resume, and say what really happened."""

import os
import platform
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scope.errors import ScopeError
from scope.generation.greedy import Generation, generate
from scope.generation.session import Session
from scope.harness.agreement import Agreement, agreement
from scope.harness.batch import first_batch_size, halving
from scope.harness.data import Example, file_hash, load_examples
from scope.harness.jobs import Job
from scope.harness.models import eos_token_ids
from scope.harness.results import ResultFile, RunFile
from scope.longgenbench.build import read_meta


def run_job(job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Generate what is missing of a job's results.

    Each example is written as it ends, and the lines are put in order in the end. The batch has one
    size and slots for every prompt, whatever is done already, so an interrupted run gives the same
    file as one that ran through; `Session` says what is left to rounding.

    Args:
        job: what to run.
        model: patched, on the job's device.
        tokenizer: the model's.

    Returns:
        What run.json holds in the end.

    Raises:
        ScopeError: for bad input, or a result folder of another configuration.
    """
    examples = load_examples(job, tokenizer, model.config.max_position_embeddings)
    run_file, result_file = RunFile(job.folder / "run.json"), ResultFile(job.result_file)
    config = job.config() | {"data_sha256": file_hash(job.data_file)}
    run = run_file.open(config)
    indices = [example.index for example in examples]
    done = result_file.resume(indices)
    metrics = run.setdefault("metrics", {})
    compared = metrics.get("agreement", {}).get("compared_with")
    reference = None
    if job.compare_with is not None and compared != str(job.compare_with):
        reference = _reference_texts(job.compare_with, examples)
    run["data"] = {
        "file": str(job.data_file),
        "sha256": config["data_sha256"],
        "rows": indices,
        "meta": read_meta(job.data_file),
    }
    torch.manual_seed(job.seed)
    if len(done) < len(examples):
        run["environment"] = _environment(job)
        run_file.write(run)
        metrics |= _generate_all(job, model, tokenizer, examples, done, result_file)
        run_file.write(run)
    result_file.sort(indices)
    records = result_file.records()
    metrics |= _summary(records)
    run["warnings"] = _warnings(job, records)
    if reference is not None:
        metrics["agreement"] = _agreement(job, model, examples, reference)
    run_file.write(run)
    return run


def _generate_all(
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    written: set[int],
    result_file: ResultFile,
) -> dict[str, Any]:
    end_tokens = eos_token_ids(model, tokenizer, job.eos)
    prompts = [example.tokens for example in examples]
    done = {i for i, example in enumerate(examples) if example.index in written}
    batch_size = first_batch_size(job, model, prompts)
    speed, generated, kv_bytes = _Speed(), 0, 0
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    with tqdm(
        total=len(examples), initial=len(done), desc=f"{job.label} {job.dataset}", unit="prompt"
    ) as bar:

        def count(tokens: int) -> None:
            speed.tokens += tokens
            bar.set_postfix_str(f"{speed.tokens_per_second:.1f} tokens/s", refresh=False)
            bar.update(0)

        def generate_rest(batch_size: int) -> None:
            nonlocal generated, kv_bytes
            speed.tokens = generated  # what running out of memory has cut off is lost
            session = Session(model, job.compression, prompts, job.max_new_tokens, batch_size)
            with speed:
                for i, generation in generate(
                    session, job.max_new_tokens, end_tokens, job.min_new_tokens, count, done
                ):
                    result_file.append(_record(examples[i], generation, tokenizer))
                    done.add(i)
                    generated += len(generation.tokens)
                    bar.update()
            kv_bytes = session.cache.kv_bytes // batch_size

        batch_size = halving(batch_size, generate_rest)
    memory = {}
    if model.device.type == "cuda":
        memory = {"peak_memory_bytes": torch.cuda.max_memory_allocated(model.device)}
    return {
        "batch_size": batch_size,
        "kv_bytes_per_sequence": kv_bytes,
        "generated_tokens": speed.tokens,
        "seconds": round(speed.seconds, 3),
        "tokens_per_second": round(speed.tokens_per_second, 2),
    } | memory


class _Speed:
    """Counts tokens, and the time inside its ``with`` blocks."""

    def __init__(self) -> None:
        self.tokens, self.finished_seconds, self.started = 0, 0.0, None

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.finished_seconds, self.started = self.seconds, None

    @property
    def seconds(self) -> float:
        running = 0.0 if self.started is None else time.perf_counter() - self.started
        return self.finished_seconds + running

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def _record(
    example: Example, generation: Generation, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """One line of the result file: the original's keys first, then ours."""
    return {
        "prompt": example.prompt,
        "questions": example.questions,
        "answers": example.answers,
        "length": len(example.prompt),
        "pred": tokenizer.decode(generation.tokens, skip_special_tokens=True),
        "index": example.index,
        "generated_tokens": len(generation.tokens),
        "generated_ids": generation.tokens,
        "stopped": generation.stopped,
        "cache": asdict(generation.cache),
    }


def _summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals of what the caches did, over all examples and averaged over layers."""
    caches = [record["cache"] for record in records]

    def mean(key: str) -> float:
        values = [value for cache in caches for value in cache[key]]
        return round(sum(values) / len(values), 2)

    return {
        "mean_prompt_tokens": sum(cache["prompt_tokens"] for cache in caches) / len(caches),
        "mean_prompt_kept": mean("prompt_kept"),
        "mean_decode_evicted": mean("decode_evicted"),
        "mean_selections": mean("selections"),
        "peak_physical_length": max(max(cache["peak"]) for cache in caches),
    }


def _warnings(job: Job, records: list[dict[str, Any]]) -> list[str]:
    """Compression that was asked for and never acted."""
    caches = [record["cache"] for record in records]
    warnings = []
    if job.compression.method != "ALLKV":
        whole = sum(max(c["prompt_kept"]) >= c["prompt_tokens"] for c in caches)
        if whole:
            warnings.append(
                f"{job.compression.method} kept all of the prompt in {whole} of {len(caches)} "
                f"examples: no longer than max_capacity_prompts "
                f"{job.compression.options.get('max_capacity_prompt')}"
            )
    if job.compression.decoding_metric != "None":
        idle = sum(max(c["decode_evicted"]) == 0 for c in caches)
        if idle:
            warnings.append(
                f"{job.compression.decoding_metric} evicted nothing in {idle} of {len(caches)} "
                f"examples: output too short for decoding_window_size "
                f"{job.compression.options.get('decoding_window_size')}"
            )
    return warnings


def _agreement(
    job: Job, model: PreTrainedModel, examples: list[Example], texts: list[list[int]]
) -> dict[str, Any]:
    prompts = [example.tokens for example in examples]
    predictions = max(map(len, texts)) * model.config.vocab_size * model.dtype.itemsize
    batch_size = first_batch_size(job, model, prompts, extra_bytes=predictions)
    total, done = Agreement(), 0
    with tqdm(
        total=len(examples), desc=f"{job.label} against the full cache", unit="prompt"
    ) as bar:

        def compare_rest(batch_size: int) -> None:
            nonlocal total, done
            while done < len(examples):
                batch = slice(done, done + batch_size)
                total += agreement(
                    model, job.compression, prompts[batch], texts[batch], job.max_new_tokens
                )
                bar.update(len(prompts[batch]))
                done += len(prompts[batch])

        halving(batch_size, compare_rest)
    return {"compared_with": str(job.compare_with)} | total.summary()


def _reference_texts(path: Path, examples: list[Example]) -> list[list[int]]:
    try:
        records = {record["index"]: record for record in ResultFile(path).records()}
        return [records[example.index]["generated_ids"] for example in examples]
    except OSError as error:
        raise ScopeError(f"--compare_with {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ScopeError(
            f"--compare_with {path}: expected a finished result file of this program on the same "
            "data file"
        ) from None


def _environment(job: Job) -> dict[str, Any]:
    name = f"{os.cpu_count()} cores of {platform.machine()}"
    if job.device.startswith("cuda"):
        name = torch.cuda.get_device_name(job.device)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": name,
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """This program's, where it runs from a git repository and git is installed."""
    command, folder = ["git", "rev-parse", "HEAD"], Path(__file__).parent
    try:
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return process.stdout.strip() or None
