"""Generating what is missing of some jobs, in one batch."""

import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scope.cache.plan import CachePlan
from scope.generation.greedy import Generation, generate
from scope.generation.sampling import Sampler, text_number
from scope.generation.session import Session
from scope.generation.work import Work
from scope.harness.batch import first_batch_size, halving
from scope.harness.data import Example
from scope.harness.floor import against_floor, counts, measured_rates, told
from scope.harness.found import Found
from scope.harness.models import eos_token_ids
from scope.harness.plan import cache_plan
from scope.harness.progress import progress
from scope.harness.results import TextKey
from scope.harness.starts import speed

# What a session's seconds go to.
_KINDS = ("prompts", "steps", "capture")


def generate_missing(
    founds: Sequence[Found], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Generate the texts that are missing, and write each as it ends.

    Args:
        founds: of jobs that `can_share_a_batch`, each that misses a text with a start of its own;
            those that miss none have their part in how large the batch and its slots are.
        model: patched, the jobs'.
        tokenizer: the model's.

    Raises:
        ScopeError: if not even one sequence fits in memory, or a file cannot be written.
    """
    job, on_gpu = founds[0].job, model.device.type == "cuda"
    parts = [_Part(found, _plan(found, model), found.left) for found in founds]
    texts = [
        _Text(part, example, key)
        for part in parts
        for example in part.found.examples
        for key in part.found.texts_of(example)
    ]
    prompts = [text.example.tokens for text in texts]
    done = {i for i, text in enumerate(texts) if text.key not in text.part.left}
    sampler = None
    if job.sampling:
        numbers = [text_number(text.part.found.job.seed, *text.key) for text in texts]
        sampler = Sampler(numbers, **job.sampling)
    rates = None
    if on_gpu:
        rates = measured_rates(model.device, model.dtype)
        torch.cuda.empty_cache()
    ends = eos_token_ids(model, tokenizer, job.eos)
    first_size = first_batch_size(job, model, prompts)
    watch, works, writing = _Stopwatch(), list[Work](), 0.0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    running = [part for part in parts if part.left]
    label = f"{job.label} {', '.join(part.found.job.dataset for part in running)}"
    wanted = sum(len(part.found.wanted) * job.num_samples for part in running)
    with progress(label, wanted, wanted - (len(texts) - len(done))) as bar:

        def count(given: Collection[int]) -> None:
            for i in given:
                texts[i].part.tokens += 1
            tokens = sum(part.tokens for part in running)
            bar.set_postfix_str(f"{tokens / watch.seconds:.1f} tokens/s", refresh=False)
            bar.update(0)

        def note(part: _Part, session: Session) -> None:
            run, start = part.found.run, part.found.run["starts"][-1]
            metrics = run["metrics"]
            all_tokens = sum(other.tokens for other in running)
            own = part.tokens / all_tokens if all_tokens else 0.0
            start["tokens"], start["seconds"] = part.tokens, round(own * watch.seconds, 3)
            start["batch_size"] = metrics["batch_size"] = session.batch_size
            metrics["kv_bytes_per_sequence"] = part.plan.kv_bytes(model.dtype)
            if far := part.plan.host_bytes(model.dtype):
                metrics["kv_bytes_on_host_per_sequence"] = far
            read = part.plan.read_bytes(model.dtype, session.cache.full_share)
            metrics["kv_bytes_read_per_step"] = read
            if on_gpu:
                peak = torch.cuda.max_memory_allocated(model.device)
                metrics["peak_memory_bytes"] = max(peak, metrics.get("peak_memory_bytes", 0))
            metrics.update(speed(run["starts"]))
            start["work"] = counts(model, works)
            spent = {kind: sum(one.seconds[kind] for one in works) for kind in _KINDS}
            start["spent"] = {k: round(s, 3) for k, s in (spent | {"writing": writing}).items()}
            if rates is not None:
                start["floor"] = against_floor(start["work"], rates, watch.seconds)
            part.found.run_file.write(run)

        def generate_rest(batch_size: int) -> None:
            nonlocal writing
            for part in running:
                part.tokens = part.finished  # what running out of memory has cut off is lost
            session = Session(model, job.compression, prompts, job.max_new_tokens, batch_size)
            works.append(session.work)
            with watch:
                for i, generation in generate(
                    session,
                    job.max_new_tokens,
                    ends,
                    job.min_new_tokens,
                    count,
                    done,
                    sampler,
                ):
                    began, part = time.perf_counter(), texts[i].part
                    part.found.result_file.append(_record(texts[i], generation, tokenizer))
                    part.finished += len(generation.tokens)
                    done.add(i)
                    bar.update()
                    note(part, session)
                    writing += time.perf_counter() - began
            for part in running:
                note(part, session)  # the last look is over only now

        halving(first_size, generate_rest)
    if rates is not None:
        start = running[0].found.run["starts"][-1]
        tqdm.write(told(label, start, watch.seconds), file=sys.stderr)


@dataclass(eq=False)
class _Part:
    """A job in the batch.

    Attributes:
        plan: what its sequences hold; beside longer prompts than its own there are more slots.
        left: its texts that are missing.
        tokens: that it was given since the start.
        finished: those of texts that have ended.
    """

    found: Found
    plan: CachePlan
    left: set[TextKey]
    tokens: int = 0
    finished: int = 0


@dataclass(frozen=True)
class _Text:
    part: _Part
    example: Example
    key: TextKey


def _plan(found: Found, model: PreTrainedModel) -> CachePlan:
    lengths = [len(example.tokens) for example in found.examples]
    return cache_plan(found.job, model.config, lengths)


class _Stopwatch:
    """The time inside its ``with`` blocks."""

    def __init__(self) -> None:
        self.finished_seconds, self.started = 0.0, None

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.finished_seconds, self.started = self.seconds, None

    @property
    def seconds(self) -> float:
        running = 0.0 if self.started is None else time.perf_counter() - self.started
        return self.finished_seconds + running


def _record(
    text: _Text, generation: Generation, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """One line of the result file: the original's keys first, then ours."""
    example = text.example
    _, sample = text.key
    return {
        "prompt": example.prompt,
        "questions": example.questions,
        "answers": example.answers,
        "length": len(example.prompt),
        "pred": tokenizer.decode(generation.tokens, skip_special_tokens=True),
        "index": example.index,
        **({"sample": sample} if text.part.found.job.sampling else {}),
        "generated_tokens": len(generation.tokens),
        "generated_ids": generation.tokens,
        "stopped": generation.stopped,
        "cache": asdict(generation.cache),
    }
