"""Generating what is missing of some jobs, in one batch."""

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
from scope.harness.account import Account, Part
from scope.harness.batch import first_batch_size, halving
from scope.harness.data import Example
from scope.harness.found import Found
from scope.harness.jobs import Job
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
    parts = [Part(found, _plan(found, model)) for found in founds]
    running = [part for part in parts if part.found.missing]
    account = Account(model, running)
    texts = [
        _Text(part, example, key)
        for part in parts
        for example in part.found.examples
        for key in part.found.texts_of(example)
    ]
    job, on_gpu = founds[0].job, model.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
    first_size = first_batch_size(job, model, [text.example.tokens for text in texts])
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    label = f"{job.label} {', '.join(part.found.job.dataset for part in running)}"
    wanted = sum(len(part.found.wanted) * job.num_samples for part in running)
    missing = sum(len(part.found.left) for part in running)
    with progress(label, wanted, wanted - missing) as bar:
        halving(first_size, _Batch(model, tokenizer, texts, account, bar).generate)
        account.tell(label)


@dataclass(frozen=True)
class _Text:
    part: Part
    example: Example
    key: TextKey


class _Batch:
    """All texts of some jobs, of which those that are missing are generated.

    Attributes:
        done: the indices of those that are there.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[_Text],
        account: Account,
        bar: tqdm,
    ) -> None:
        self.model, self.tokenizer, self.texts = model, tokenizer, texts
        self.account, self.bar = account, bar
        left = {part: part.found.left for part in {text.part for text in texts}}
        self.done = {i for i, text in enumerate(texts) if text.key not in left[text.part]}

    def generate(self, batch_size: int) -> None:
        """Generate what is missing, so many at a time."""
        job, account = self.texts[0].part.found.job, self.account
        prompts = [text.example.tokens for text in self.texts]
        session = Session(self.model, job.compression, prompts, job.max_new_tokens, batch_size)
        account.begin(session)
        with account.watch:
            for i, generation in generate(
                session,
                job.max_new_tokens,
                eos_token_ids(self.model, self.tokenizer, job.eos),
                job.min_new_tokens,
                self._count,
                self.done,
                self._sampler(job),
            ):
                with account.writing:
                    self._write(i, generation)
                    account.note(self.texts[i].part, session)
        account.end(session)  # the last look is over only now

    def _sampler(self, job: Job) -> Sampler | None:
        if not job.sampling:
            return None
        return Sampler([text_number(job.seed, *text.key) for text in self.texts], **job.sampling)

    def _count(self, given: Collection[int]) -> None:
        for i in given:
            self.texts[i].part.tokens += 1
        rate = self.account.tokens / self.account.watch.seconds
        self.bar.set_postfix_str(f"{rate:.1f} tokens/s", refresh=False)
        self.bar.update(0)

    def _write(self, i: int, generation: Generation) -> None:
        text = self.texts[i]
        text.part.found.result_file.append(_record(text, generation, self.tokenizer))
        text.part.finished += len(generation.tokens)
        self.done.add(i)
        self.bar.update()


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
