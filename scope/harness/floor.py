"""The floor of a job, the least time that its work could take, beside where its time went."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel

from scope.generation.work import Work
from scope.methods.rope import head_dim_of

_RUNS, _IN_A_ROW = 3, 10


@dataclass(frozen=True)
class Rates:
    """What a device does in a second: bytes that a copy reads and writes, operations of a product.

    Both are measured on large tensors, several between two waits for the device.
    """

    bytes: float
    operations: float


@cache
def measured_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measure a GPU, once a process; takes a tenth of a second and 768 MiB for that time."""
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target, size = torch.empty_like(source), 8192
    left = torch.randn(size, size, dtype=dtype, device=device)
    right, product = torch.randn_like(left), torch.empty_like(left)
    copying = _seconds(device, lambda: target.copy_(source))
    multiplying = _seconds(device, lambda: torch.mm(left, right, out=product))
    return Rates(2 * source.nbytes / copying, 2 * size**3 / multiplying)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Of the fastest run."""
    best = float("inf")
    for _ in range(_RUNS):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(_IN_A_ROW):
            work()
        torch.cuda.synchronize(device)
        best = min(best, (time.perf_counter() - started) / _IN_A_ROW)
    return best


@dataclass(frozen=True)
class Cost:
    """What a model asks of a device, whatever the cache.

    Attributes:
        weights: of the layers' products.
        width: of all layers' queries together.
        step_bytes: of the weights that a step reads.
    """

    weights: int
    width: int
    step_bytes: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Cost":
        """Of all weights but the embedding: a row of it is read for each token, not all."""
        config, layers = model.config.get_text_config(), model.get_decoder().layers
        step_bytes = sum(weight.nbytes for weight in model.parameters())
        if not config.tie_word_embeddings:
            step_bytes -= model.get_input_embeddings().weight.nbytes
        return cls(
            weights=sum(weight.numel() for weight in layers.parameters() if weight.ndim == 2),
            width=config.num_attention_heads * head_dim_of(config) * config.num_hidden_layers,
            step_bytes=step_bytes,
        )


def counts(cost: Cost, works: Sequence[Work]) -> dict[str, int]:
    """What some sessions had to do: operations of their prompts, and bytes of their steps.

    Operations are two per weight of the layers and token, and those of causal attention; bytes are
    every weight once a step, and what the running rows held.
    """
    prompts = [length for work in works for length in work.prompts]
    steps = sum(work.steps for work in works)
    return {
        "prompts": len(prompts),
        "prompt_operations": sum(2 * cost.weights * n + 2 * cost.width * n * n for n in prompts),
        "steps": steps,
        "row_steps": sum(work.row_steps for work in works),
        "idle_row_steps": sum(work.idle_row_steps for work in works),
        "weight_bytes": steps * cost.step_bytes,
        "slot_bytes": sum(work.slot_bytes for work in works),
    }


def against_floor(done: dict[str, int], rates: Rates, seconds: float) -> dict[str, float]:
    """Seconds that this takes at these rates, and which share of the real ones that is."""
    prompts = done["prompt_operations"] / rates.operations
    steps = (done["weight_bytes"] + done["slot_bytes"]) / rates.bytes
    return {
        "copy_bytes_per_second": rates.bytes,
        "operations_per_second": rates.operations,
        "prompts": round(prompts, 3),
        "steps": round(steps, 3),
        "share": round((prompts + steps) / seconds, 3) if seconds else 0.0,
    }


def told(label: str, start: dict[str, Any], seconds: float) -> str:
    """One line about a start on a GPU, all of whose batch took so long."""
    done, spent, floor = start["work"], start["spent"], start["floor"]
    rows = done["row_steps"] + done["idle_row_steps"]
    idle = done["idle_row_steps"] / rows if rows else 0.0
    return (
        f"{label}: {seconds:.1f} s, of which the floor is {floor['share']:.0%}: prompts "
        f"{spent['prompts']:.2f} s (floor {floor['prompts']:.2f}), {done['steps']} steps "
        f"{spent['steps']:.2f} s (floor {floor['steps']:.2f}; capture {spent['capture']:.2f} s; "
        f"{idle:.0%} of the rows idle), writing {spent['writing']:.2f} s beside them; copies at "
        f"{floor['copy_bytes_per_second'] / 1e12:.2f} TB/s, products at "
        f"{floor['operations_per_second'] / 1e12:.0f} TFLOP/s"
    )
