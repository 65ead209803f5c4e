"""What a job will hold in memory, known before any weight is loaded."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

from scope.cache.layer import SlotLayer
from scope.cache.schedule import slots_needed
from scope.harness.jobs import Job


@dataclass(frozen=True)
class Plan:
    """Sizes of one job.

    Attributes:
        prompt_tokens: shortest and longest prompt.
        capacities: prompt tokens that each layer may keep of the longest prompt.
        slots: slots per layer.
        kv_bytes: bytes of keys and values per sequence.
        full_kv_bytes: the same for a full cache of the longest prompt and T tokens.
        largest_batch: sequences that fit beside the weights in the device's memory; the memory
            that reading a prompt takes is not counted.
    """

    prompt_tokens: tuple[int, int]
    capacities: list[int]
    slots: list[int]
    kv_bytes: int
    full_kv_bytes: int
    largest_batch: int

    def lines(self, job: Job) -> list[str]:
        """The plan for a reader."""
        gib = 2.0**30
        share = self.kv_bytes / self.full_kv_bytes
        return [
            f"{job.label} on {job.dataset}: {job.data_file}",
            f"  results      {job.result_file}",
            f"  prompts      {self.prompt_tokens[0]} to {self.prompt_tokens[1]} tokens; up to "
            f"{job.max_new_tokens} new ones",
            f"  prompt kept  per layer: {_runs(self.capacities)}",
            f"  slots        per layer and head: {_runs(self.slots)}",
            f"  KV cache     {self.kv_bytes / gib:.3f} GiB per sequence, {share:.0%} of the full "
            f"cache's {self.full_kv_bytes / gib:.3f} GiB",
            f"  batch        {job.batch_size}; at most {self.largest_batch} sequences fit on "
            f"{job.device} beside the weights",
        ]


def make_plan(job: Job, config: PreTrainedConfig, prompt_lengths: list[int]) -> Plan:
    """Size a job for these prompts."""
    layers, longest = config.num_hidden_layers, max(prompt_lengths)
    slots = slots_needed(job.compression, job.max_new_tokens, layers, prompt_lengths)
    kv_bytes = sum(slots) * _token_bytes(job, config, _cached_heads(job, config))
    return Plan(
        prompt_tokens=(min(prompt_lengths), longest),
        capacities=[
            min(capacity, longest)
            for capacity in job.compression.compressor.capacities(longest, layers)
        ],
        slots=slots,
        kv_bytes=kv_bytes,
        full_kv_bytes=layers
        * (longest + job.max_new_tokens)
        * _token_bytes(job, config, config.num_key_value_heads),
        largest_batch=max(
            0,
            (_memory(job.device) - _weight_bytes(job, config)) // row_bytes(job, config, slots),
        ),
    )


def row_bytes(job: Job, config: PreTrainedConfig, slots: list[int]) -> int:
    """Bytes that each row of a batch takes: its slots, and its part of a decode step.

    Args:
        job: what to run.
        config: the model's.
        slots: slots per layer.
    """
    dtype = getattr(torch, job.dtype)
    like, held = torch.empty(_head_dim(config), dtype=dtype, device="meta"), 0
    for index, count in enumerate(slots):
        layer = SlotLayer(index)
        layer.allocate(like, batch_size=1, heads=_cached_heads(job, config), slots=count)
        held += sum(part.nbytes for part in vars(layer).values() if isinstance(part, Tensor))
    # One layer after the other, a step keeps the attention logits of every slot in float32; then
    # come the logits of the vocabulary, as the model gives them and in float32.
    logits = 4 * config.num_attention_heads * max(slots) + config.vocab_size * (4 + dtype.itemsize)
    return held + logits


def _token_bytes(job: Job, config: PreTrainedConfig, heads: int) -> int:
    """Bytes of one token's keys and values in one layer."""
    return 2 * heads * _head_dim(config) * getattr(torch, job.dtype).itemsize


def _cached_heads(job: Job, config: PreTrainedConfig) -> int:
    repeated = job.compression.fidelity.cached_heads == "query"
    return config.num_attention_heads if repeated else config.num_key_value_heads


def _head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _weight_bytes(job: Job, config: PreTrainedConfig) -> int:
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
