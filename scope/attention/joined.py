"""Projections that read the same input as one tensor, while a model is patched."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from scope.attention.tensor_parallel import GatheredLinear, SummedLinear
from scope.kernels import has_kernels_for

MODELS = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
# RoPE of these kinds depends on positions alone; others look at the longest one, on the host.
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


def model_obstacle(model: nn.Module) -> str | None:
    """Why the layers of this model cannot be fused, or None."""
    if not isinstance(model, MODELS):
        known = ", ".join(cls.__name__.removesuffix("ForCausalLM") for cls in MODELS)
        return f"the layers of {type(model).__name__} are not those of {known}"
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return "the model is spread over several devices"
    projections = {type(model.lm_head)} | {
        type(getattr(module, name))
        for layer in model.model.layers
        for module, names in ((layer.self_attn, "qkvo"), (layer.mlp, ("gate", "up", "down")))
        for name in (f"{part}_proj" for part in names)
    }
    if not projections <= {nn.Linear, SummedLinear, GatheredLinear}:
        return f"its projections are {', '.join(sorted(cls.__name__ for cls in projections))}"
    if model.config.hidden_act != "silu":
        return f"its activation is {model.config.hidden_act}"
    if model.model.rotary_emb.rope_type not in _STATIC_ROPE:
        return f"its RoPE is of type {model.model.rotary_emb.rope_type}"
    return None


def has_kernels(model: PreTrainedModel) -> bool:
    """Whether there are kernels for a model without obstacle, where it is."""
    attention = model.model.layers[0].self_attn
    return has_kernels_for(attention.k_proj.weight.new_empty(0, attention.head_dim))


@contextmanager
def joined_weights(model: PreTrainedModel) -> Iterator[None]:
    """Join the projections that a fused layer does at once; give them back on leaving.

    Values stay and nothing is stored twice. A model without kernels or with an obstacle is let be.
    """
    joins = model_obstacle(model) is None and has_kernels(model)
    groups = [parts for parts in _groups(model) if not _adjoin(parts)] if joins else []
    with torch.inference_mode(False), torch.no_grad():
        for parts in groups:
            whole = torch.cat([part.data for part in parts])
            owns = whole.split([len(part) for part in parts])
            for part, own in zip(parts, owns, strict=True):
                part.data = own
    try:
        yield
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for part in (part for parts in groups for part in parts):
                part.data = part.data.clone()


def are_joined(model: PreTrainedModel) -> bool:
    """Whether `joined` can see all that a layer does at once; moving a model parts its weights."""
    return all(_adjoin(parts) for parts in _groups(model))


def joined(*linears: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of joined linears as one."""
    first, rows = linears[0], sum(linear.out_features for linear in linears)
    return _whole(first.weight, rows), None if first.bias is None else _whole(first.bias, rows)


def _groups(model: PreTrainedModel) -> Iterator[list[Any]]:
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linears in (
            (attention.q_proj, attention.k_proj, attention.v_proj),
            (mlp.gate_proj, mlp.up_proj),
        ):
            yield [linear.weight for linear in linears]
            if linears[0].bias is not None:
                yield [linear.bias for linear in linears]


def _adjoin(parts: list[nn.Parameter]) -> bool:
    """Whether each part ends where the next begins, in one storage."""
    return len({part.untyped_storage().data_ptr() for part in parts}) == 1 and all(
        a.data_ptr() + a.nbytes == b.data_ptr() for a, b in pairwise(parts)
    )


def _whole(part: Tensor, rows: int) -> Tensor:
    """So many rows from the first of a part on."""
    return part.data.as_strided((rows, *part.shape[1:]), part.stride())
