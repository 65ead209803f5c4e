"""What a job will hold in memory, known before any weight is loaded."""

import os
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from scope.attention.splitting import allowed_ranks
from scope.cache.plan import CachePlan
from scope.compression import Compression
from scope.harness.jobs import Job


@dataclass(frozen=True)
class Plan:
    """Sizes of one job.

    Attributes:
        prompt_tokens: shortest and longest prompt.
        capacities: prompt tokens that each layer may keep of the longest prompt.
        average: most that they keep on average, where who keeps more is not known before.
        slots: slots per layer.
        arena: slots per head that all layers share; None where each has its own.
        compact: most tokens per layer that are held in less room beside them.
        kv_bytes: bytes of keys and values per sequence, on the device.
        host_bytes: the same in host memory, where they are offloaded to it.
        read_bytes: of all these, bytes that a decode step reads on average once all are held.
        full_kv_bytes: the same for a full cache of the longest prompt and T tokens.
        largest_batch: sequences that fit beside the weights in the device's memory; the memory
            that reading a prompt takes is not counted.
        ranks: GPUs that the model can be split over.
    """

    prompt_tokens: tuple[int, int]
    capacities: list[int]
    average: int | None
    slots: list[int]
    arena: int | None
    compact: list[int]
    kv_bytes: int
    host_bytes: int
    read_bytes: int
    full_kv_bytes: int
    largest_batch: int
    ranks: list[int]

    def lines(self, job: Job) -> list[str]:
        """The plan for a reader."""
        mib = 2.0**20
        share = self.kv_bytes / self.full_kv_bytes
        read = self.read_bytes / self.full_kv_bytes
        beside = f"; in less room: {_runs(self.compact)} tokens" if any(self.compact) else ""
        far = self.host_bytes / mib
        kept, slots = _runs(self.capacities), f"per layer and head: {_runs(self.slots)}"
        if self.average is not None:
            kept = f"up to {kept}, at most {self.average} on average"
        if self.arena is not None:
            slots = f"per head: {self.arena} for all layers together"
        return [
            f"{job.label} on {job.dataset}: {job.data_file}",
            f"  results      {job.result_file}",
            f"  prompts      {self.prompt_tokens[0]} to {self.prompt_tokens[1]} tokens; up to "
            f"{job.max_new_tokens} new ones",
            f"  prompt kept  per layer: {kept}",
            f"  slots        {slots}{beside}",
            f"  KV cache     {self.kv_bytes / mib:,.2f} MiB per sequence, {share:.0%} of the full "
            f"cache's {self.full_kv_bytes / mib:,.2f} MiB",
            *([f"  KV offloaded {far:,.2f} MiB per sequence, in host memory"] if far else []),
            f"  KV read      {self.read_bytes / mib:,.2f} MiB per sequence and step, {read:.0%} of "
            "the full cache's",
            f"  batch        {job.batch_size}; at most {self.largest_batch} sequences fit on "
            f"{job.device} beside the weights",
            f"  GPUs         with --tensor_parallel {', '.join(map(str, self.ranks))}",
        ]


def cache_plan(job: Job, config: PreTrainedConfig, prompt_lengths: list[int]) -> CachePlan:
    """What a job's cache has to hold for these prompts."""
    recipe = job.compression.recipe(job.max_new_tokens)
    return CachePlan.make(config, recipe, job.max_new_tokens, prompt_lengths)


def make_plan(job: Job, config: PreTrainedConfig, prompt_lengths: list[int]) -> Plan:
    """Size a job for these prompts."""
    longest, dtype = max(prompt_lengths), getattr(torch, job.dtype)
    cache = cache_plan(job, config, prompt_lengths)
    everything = Compression().recipe(job.max_new_tokens)
    full = CachePlan.make(config, everything, job.max_new_tokens, [longest])
    room = _memory(job.device) - weight_bytes(job, config)
    budget = cache.recipe.budget
    capacity = budget.capacity
    host_room = _memory("cpu") if job.device.startswith("cuda") else None
    return Plan(
        prompt_tokens=(min(prompt_lengths), longest),
        capacities=list(cache.capacities),
        average=capacity if budget.observes and (capacity or longest) < longest else None,
        slots=list(cache.slots),
        arena=cache.arena,
        compact=list(cache.compact),
        kv_bytes=cache.kv_bytes(dtype),
        host_bytes=cache.host_bytes(dtype),
        read_bytes=cache.read_bytes(dtype),
        full_kv_bytes=full.kv_bytes(dtype),
        largest_batch=max(0, cache.rows_within(dtype, room, host_room)),
        ranks=allowed_ranks(config),
    )


def check_plan(job: Job, config: PreTrainedConfig) -> None:
    """See that this model can be held as a job asks for, by the smallest of plans.

    Raises:
        ScopeError: with what would do.
    """
    recipe = job.compression.recipe(job.max_new_tokens)
    CachePlan.make(config, recipe, 1, [1]).kv_bytes(getattr(torch, job.dtype))


def weight_bytes(job: Job, config: PreTrainedConfig) -> int:
    """Bytes of the model's weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, job.dtype))
    return sum(parameter.nbytes for parameter in model.parameters())


def _memory(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _runs(values: list[int]) -> str:
    """``512`` where all are equal, otherwise all of them."""
    return str(values[0]) if len(set(values)) == 1 else " ".join(map(str, values))
