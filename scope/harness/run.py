"""Running one job: generate, record, resume, and say what really happened."""

import shutil
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scope.attention.patch import patch
from scope.cache.plan import CachePlan
from scope.errors import ScopeError
from scope.evaluation.results import SLICES
from scope.generation.greedy import Generation, generate
from scope.generation.sampling import Sampler, text_number
from scope.generation.session import Session
from scope.generation.work import Work
from scope.harness.agreement import FULL_CACHE, Agreement, agreement, summary
from scope.harness.batch import first_batch_size, halving
from scope.harness.data import Example, file_hash, load_examples, select_rows
from scope.harness.floor import against_floor, counts, measured_rates, told
from scope.harness.jobs import Job
from scope.harness.lock import locked
from scope.harness.models import Models, check_loadable, eos_token_ids
from scope.harness.plan import check_plan
from scope.harness.progress import progress
from scope.harness.results import HASH, ResultFile, RunFile, TextKey, check_writable, key_of
from scope.harness.starts import new_start, speed
from scope.harness.summary import idle_compression, totals
from scope.longgenbench.build import read_meta

# What a session's seconds go to.
_KINDS = ("prompts", "steps", "capture")

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
    found = _Found.look(job, _examples(job, models))
    if found.finished:
        return
    check_plan(job, models.config(job.model_path))
    check_loadable(job.model_path, job.attn_implementation)
    if job.compare_with is not None and job.compare_with.resolve() not in coming:
        found.reference_texts()
    check_writable(job.folder)


def join_slices(job: Job, slices: Sequence[Job], models: Models) -> None:
    """Put what slices of a job have written into its own folder, and remove theirs.

    The order does not matter, and neither does being killed: `run_job`, which comes next, finds
    what is there.

    Args:
        job: the whole.
        slices: its slices; one that was joined before is passed over.
        models: the command's.

    Raises:
        ScopeError: a folder of another configuration or in use, or one that cannot be written.
    """
    examples = _examples(job, models)
    with locked(job.folder, patience=_PATIENCE):
        found = _Found.look(job, examples)
        run, done = found.run, set(found.rows)
        result_file = ResultFile(job.result_file)
        parts = [part for part in slices if part.result_file.exists()]
        result_file.cut()
        for part in parts:
            theirs = _Found.look(part, examples).run
            starts = run.setdefault("starts", [])
            starts += [start for start in theirs.get("starts", []) if start not in starts]
            run["metrics"] = theirs.get("metrics", {}) | run.get("metrics", {}) | speed(starts)
            RunFile(job.folder / "run.json").write(run)
            for record in ResultFile(part.result_file).records():
                if (key := key_of(record)) not in done:
                    done.add(key)
                    result_file.append(record)
        for part in parts:
            shutil.rmtree(part.folder)
        with suppress(OSError):
            (job.folder / SLICES).rmdir()  # where others are left, so is the folder


def run_job(job: Job, models: Models, patience: float = 0) -> dict[str, Any]:
    """Generate what is missing of a job's results.

    Each example is written as it ends, and the lines are put in order in the end. The batch has one
    size and slots for every prompt, whatever is done already, so an interrupted run gives the same
    file as one that ran through; `Session` says what is left to rounding. Where nothing is missing,
    nothing is loaded or written. A run of more examples than before goes on; one of fewer leaves
    those that are there.

    Args:
        job: what to run.
        models: the command's.
        patience: seconds to wait for another process to leave the folder.

    Returns:
        What run.json holds in the end.

    Raises:
        ScopeError: for bad input, a result folder of another configuration or in use, or one that
            cannot be written.
    """
    examples = _examples(job, models)
    found = _Found.look(job, examples)
    if found.finished:
        return found.run
    with locked(job.folder, patience):
        found = _Found.look(job, examples)  # another process may have held the folder until now
        _complete(found, models)
    return found.run


@dataclass(frozen=True)
class _Found:
    """What a result folder holds of a job, before anything is done.

    Attributes:
        job: what is to be run.
        examples: all of the data, those outside of a slice too: the batch and its slots are made
            for all of them.
        run: what run.json holds.
        rows: every text that is done, line by line.
    """

    job: Job
    examples: list[Example]
    run: dict[str, Any]
    rows: list[TextKey]

    @property
    def wanted(self) -> list[Example]:
        """The examples that the job asks for."""
        return self.examples if self.job.rows is None else self.examples[slice(*self.job.rows)]

    @classmethod
    def look(cls, job: Job, examples: list[Example]) -> "_Found":
        run = RunFile(job.folder / "run.json").open(_config(job))
        all_rows = select_rows(replace(job, max_num_examples=None))
        rows = ResultFile(job.result_file).done([index for index, _ in all_rows])
        return cls(job, examples, run, rows)

    @property
    def missing(self) -> bool:
        """Whether an example that is asked for has to be generated."""
        return bool(self.left)

    @property
    def left(self) -> set[TextKey]:
        """The texts that are asked for and not there."""
        return {key for e in self.wanted for key in _texts_of(e, self.job)} - set(self.rows)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return (
            not self.missing
            and self.rows == sorted(self.rows)
            and sorted({index for index, _ in self.rows}) == self.run.get("data", {}).get("rows")
            and "warnings" in self.run
            and "mean_prompt_tokens" in self.run.get("metrics", {})
            and not self.to_compare
        )

    @property
    def to_compare(self) -> bool:
        """Whether the closeness to the full cache is still to be measured."""
        measured = self.run.get("metrics", {}).get("agreement", {}).get("compared_with")
        return self.job.compare_with is not None and (
            self.missing or measured != str(self.job.compare_with)
        )

    def reference_texts(self) -> list[list[int]] | None:
        """What the full cache wrote after each prompt, where that is to be compared."""
        if not self.to_compare:
            return None
        path = self.job.compare_with
        if not path.is_file():
            raise ScopeError(f"--compare_with {path}: no such file")
        try:
            records = {
                record["index"]: record
                for record in ResultFile(path).records()
                if record.get("sample", 0) == 0
            }
            return [records[example.index]["generated_ids"] for example in self.examples]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ScopeError(
                f"--compare_with {path}: expected a finished result file of this program on the "
                "same data file"
            ) from None


def _examples(job: Job, models: Models) -> list[Example]:
    context_length = models.config(job.model_path).max_position_embeddings
    return load_examples(job, models.tokenizer(job.model_path), context_length)


def _texts_of(example: Example, job: Job) -> list[TextKey]:
    return [(example.index, number) for number in range(job.num_samples)]


def _config(job: Job) -> dict[str, Any]:
    """The job's configuration, with the content of its files."""
    config = job.config() | {"data_sha256": file_hash(job.data_file)}
    if job.instruction_file is not None:
        config["instruction_sha256"] = file_hash(job.instruction_file)
    hashes = {name + HASH: file_hash(file) for name, file in job.compression.files.items()}
    return config | hashes


def _complete(found: _Found, models: Models) -> None:
    """Do what is missing, and bring run.json up to date."""
    job, run, examples = found.job, found.run, found.examples
    run["label"] = job.label
    if found.missing or found.to_compare:
        models.model(*job.loading)  # whose errors come before anything is written
    run_file, result_file = RunFile(job.folder / "run.json"), ResultFile(job.result_file)
    reference = found.reference_texts()
    rows = sorted({e.index for e in found.wanted} | {index for index, _ in found.rows})
    run["data"] = {
        "file": str(job.data_file),
        "sha256": file_hash(job.data_file),
        "rows": rows,
        "meta": read_meta(job.data_file),
    }
    metrics = run.setdefault("metrics", {})
    torch.manual_seed(job.seed)
    if found.missing:
        run["config"] = _config(job)
        metrics.pop("agreement", None)  # it will be of more examples
        run.setdefault("starts", []).append(new_start(job))
        run_file.write(run)
        result_file.cut()
        with patch(models.model(*job.loading)) as model:
            tokenizer = models.tokenizer(job.model_path)
            _generate_all(found, model, tokenizer, run_file, result_file)
    result_file.sort()
    records = result_file.records()
    metrics |= totals(records)
    run["warnings"] = idle_compression(job, records)
    if reference is not None:
        with patch(models.model(*job.loading)) as model:
            metrics["agreement"] = _agreement(job, model, examples, reference)
    run_file.write(run)


def _generate_all(
    found: _Found,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run_file: RunFile,
    result_file: ResultFile,
) -> None:
    job, run, examples = found.job, found.run, found.examples
    end_tokens = eos_token_ids(model, tokenizer, job.eos)
    by_index = {example.index: example for example in examples}
    keys = [key for example in examples for key in _texts_of(example, job)]
    prompts = [by_index[index].tokens for index, _ in keys]
    left = found.left
    done = {i for i, key in enumerate(keys) if key not in left}
    sampler = None
    if job.sampling:
        sampler = Sampler([text_number(job.seed, *key) for key in keys], **job.sampling)
    rates = None
    if model.device.type == "cuda":
        rates = measured_rates(model.device, model.dtype)
        torch.cuda.empty_cache()
    batch_size = first_batch_size(job, model, prompts)
    watch, finished, works, writing = _Stopwatch(), 0, list[Work](), 0.0
    start, metrics = run["starts"][-1], run["metrics"]
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    wanted = len(found.wanted) * job.num_samples
    with progress(f"{job.label} {job.dataset}", wanted, wanted - len(left)) as bar:

        def count(tokens: int) -> None:
            watch.tokens += tokens
            bar.set_postfix_str(f"{watch.tokens_per_second:.1f} tokens/s", refresh=False)
            bar.update(0)

        def note(session: Session) -> None:
            start["tokens"], start["seconds"] = watch.tokens, round(watch.seconds, 3)
            start["batch_size"] = metrics["batch_size"] = session.batch_size
            cache = session.cache
            metrics["kv_bytes_per_sequence"] = cache.kv_bytes // session.batch_size
            if far := cache.plan.host_bytes(model.dtype):
                metrics["kv_bytes_on_host_per_sequence"] = far
            read = cache.plan.read_bytes(model.dtype, cache.full_share)
            metrics["kv_bytes_read_per_step"] = read
            if model.device.type == "cuda":
                peak = torch.cuda.max_memory_allocated(model.device)
                metrics["peak_memory_bytes"] = max(peak, metrics.get("peak_memory_bytes", 0))
            metrics.update(speed(run["starts"]))
            start["work"] = counts(model, works)
            spent = {kind: sum(one.seconds[kind] for one in works) for kind in _KINDS}
            start["spent"] = {k: round(s, 3) for k, s in (spent | {"writing": writing}).items()}
            if rates is not None:
                start["floor"] = against_floor(start["work"], rates, watch.seconds)
            run_file.write(run)

        def generate_rest(batch_size: int) -> None:
            nonlocal finished, writing
            watch.tokens = finished  # what running out of memory has cut off is lost
            session = Session(model, job.compression, prompts, job.max_new_tokens, batch_size)
            works.append(session.work)
            with watch:
                for i, generation in generate(
                    session,
                    job.max_new_tokens,
                    end_tokens,
                    job.min_new_tokens,
                    count,
                    done,
                    sampler,
                ):
                    began = time.perf_counter()
                    index, number = keys[i]
                    sample = number if job.sampling else None
                    result_file.append(_record(by_index[index], generation, tokenizer, sample))
                    done.add(i)
                    finished += len(generation.tokens)
                    bar.update()
                    note(session)
                    writing += time.perf_counter() - began
            note(session)  # the last look is over only now

        halving(batch_size, generate_rest)
    if rates is not None:
        tqdm.write(told(f"{job.label} {job.dataset}", start), file=sys.stderr)


class _Stopwatch:
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
    example: Example,
    generation: Generation,
    tokenizer: PreTrainedTokenizerBase,
    sample: int | None,
) -> dict[str, Any]:
    """One line of the result file: the original's keys first, then ours."""
    return {
        "prompt": example.prompt,
        "questions": example.questions,
        "answers": example.answers,
        "length": len(example.prompt),
        "pred": tokenizer.decode(generation.tokens, skip_special_tokens=True),
        "index": example.index,
        **({} if sample is None else {"sample": sample}),
        "generated_tokens": len(generation.tokens),
        "generated_ids": generation.tokens,
        "stopped": generation.stopped,
        "cache": asdict(generation.cache),
    }


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
