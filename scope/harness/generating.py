"""Generating what is missing of some jobs, in one batch."""

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scope.cache.plan import CachePlan
from scope.generation.greedy import Generation, generate
from scope.generation.sampling import Sampler, text_number
from scope.generation.session import Session
from scope.harness.account import Account
from scope.harness.batch import first_batch_size, halving
from scope.harness.data import Example
from scope.harness.found import Found
from scope.harness.models import eos_token_ids
from scope.harness.plan import cache_plan
from scope.harness.progress import progress
from scope.harness.results import TextKey


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
    account = Account(model)
    if on_gpu:
        torch.cuda.empty_cache()
    ends = eos_token_ids(model, tokenizer, job.eos)
    first_size = first_batch_size(job, model, prompts)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    running = [part for part in parts if part.left]
    for part in running:
        part.found.run["metrics"] |= account.sizes(part.plan)
    label = f"{job.label} {', '.join(part.found.job.dataset for part in running)}"
    wanted = sum(len(part.found.wanted) * job.num_samples for part in running)
    with progress(label, wanted, wanted - (len(texts) - len(done))) as bar:

        def count(given: Collection[int]) -> None:
            for i in given:
                texts[i].part.tokens += 1
            tokens = sum(part.tokens for part in running)
            bar.set_postfix_str(f"{tokens / account.watch.seconds:.1f} tokens/s", refresh=False)
            bar.update(0)

        def note(part: _Part, session: Session) -> None:
            share = part.tokens / max(sum(other.tokens for other in running), 1)
            account.enter(part.found.run, part.tokens, share, session)
            part.found.run_file.write(part.found.run)

        def generate_rest(batch_size: int) -> None:
            for part in running:
                part.tokens = part.finished  # what running out of memory has cut off is lost
            session = Session(model, job.compression, prompts, job.max_new_tokens, batch_size)
            account.works.append(session.work)
            with account.watch:
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
                    account.writing += time.perf_counter() - began
            for part in running:  # the last look is over only now
                sizes = account.sizes(part.plan, session.cache.full_share)
                part.found.run["metrics"] |= sizes
                note(part, session)

        halving(first_size, generate_rest)
    account.tell(label, running[0].found.run["starts"][-1])


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
