"""How many sequences decode together: as many as memory holds, fewer where it runs out."""

import gc
import os
import sys
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from scope.errors import ScopeError
from scope.generation.session import Session
from scope.harness.jobs import Job
from scope.harness.plan import cache_plan

# What a CUDA graph, the workspaces of matrix products and gaps between tensors may take.
_RESERVE = 512 * 2**20


def halving(batch_size: int, work: Callable[[int], object]) -> int:
    """Do some work with batches of a size, or of half of it each time that memory runs out.

    Args:
        batch_size: the size to begin with.
        work: does what is missing with batches of the size that it is given.

    Returns:
        The size that it ended with.

    Raises:
        ScopeError: if memory runs out with one sequence.
    """
    while not _fits(batch_size, work):
        if batch_size == 1:
            raise ScopeError(
                "out of memory with a batch of 1; lower --max_capacity_prompts, "
                "--decoding_window_size or --max_new_tokens, cut prompts with --max_prompt_tokens "
                "and --truncate_prompts true, or use a --dtype of 16 bits"
            )
        gc.collect()
        torch.cuda.empty_cache()
        batch_size //= 2
        tqdm.write(f"warning: out of memory; the batch is now {batch_size}", file=sys.stderr)
    return batch_size


def _fits(batch_size: int, work: Callable[[int], object]) -> bool:
    try:
        work(batch_size)
    except torch.OutOfMemoryError:
        # Not freed here: the error's traceback holds on to all that the work has allocated.
        return False
    return True


def first_batch_size(
    job: Job, model: PreTrainedModel, prompts: Sequence[Sequence[int]], extra_bytes: int = 0
) -> int:
    """The batch size that was asked for; for ``auto``, how many of these prompts fit in memory.

    Args:
        job: what to run.
        model: patched, on the job's device.
        prompts: token ids of all prompts.
        extra_bytes: what a sequence needs beside its part of the decoding.
    """
    if job.batch_size != "auto":
        return min(job.batch_size, len(prompts))
    lengths = [len(prompt) for prompt in prompts]
    plan = cache_plan(job, model.config, lengths)
    room = _room_beside_one(job, model, prompts, lengths.index(max(lengths))) - extra_bytes
    host_room = _free_host_memory() if model.device.type == "cuda" else None
    others = plan.rows_within(model.dtype, room, host_room, extra_bytes)
    return max(1, min(len(prompts), 1 + others))


def _room_beside_one(
    job: Job, model: PreTrainedModel, prompts: Sequence[Sequence[int]], longest: int
) -> int:
    """Bytes for other rows, beside one that reads the longest prompt."""
    if model.device.type != "cuda":
        return _free_host_memory()
    device = model.device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)

    def read(batch_size: int) -> None:
        session = Session(model, job.compression, prompts, job.max_new_tokens, batch_size)
        session.admit(0, longest)

    halving(1, read)  # which says what to do if not even one fits
    reading = torch.cuda.max_memory_allocated(device) - before
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused - reading - _RESERVE


def _free_host_memory() -> int:
    # Half of what is free, or of all where that is not told (macOS): others run here too, and no
    # error says in time that memory is short.
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf(pages) // 2
