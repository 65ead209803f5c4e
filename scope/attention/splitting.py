"""One model over the GPUs of a host: each rank has some heads and some of the MLP's columns.

A rank's model is a smaller one, with fewer heads in its configuration, so that cache, scores and
kernels need not know; what its two output projections of a layer give is summed over the ranks. The
slots are split with the KV heads. transformers' own plan makes the same split, of DTensors, which
the kernels of a fused step and a recorded graph cannot take.
"""

from typing import Any

import torch.distributed as dist
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from scope.attention.joined import MODELS, model_obstacle
from scope.attention.tensor_parallel import GatheredLinear, SummedLinear
from scope.errors import ScopeError


def allowed_ranks(config: PreTrainedConfig) -> list[int]:
    """The numbers of ranks that a model can be split over: they divide its heads and MLP;
    one for a family that is not split.
    """
    if not isinstance(config, tuple(filter(None, (model.config_class for model in MODELS)))):
        return [1]
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    sizes = heads, config.num_attention_heads, config.intermediate_size
    return [n for n in range(1, heads + 1) if not any(size % n for size in sizes)]


def split_over_ranks(model: PreTrainedModel) -> None:
    """Leave this rank's part of a model, in place; a process group must be there.

    Weights may be on any device, the meta device included.

    Args:
        model: one of a family that a fused step serves.

    Raises:
        ScopeError: for a number of ranks that does not divide the model.
    """
    if reason := model_obstacle(model):
        raise ScopeError(f"--tensor_parallel: the model cannot be split: {reason}")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    config: Any = model.config
    if ranks not in allowed_ranks(config):
        allowed = ", ".join(map(str, allowed_ranks(config)))
        raise ScopeError(f"--tensor_parallel: {ranks} processes, and the model allows {allowed}")
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (
            *(attention.q_proj, attention.k_proj, attention.v_proj),
            *(mlp.gate_proj, mlp.up_proj),
        ):
            _keep(linear, 0, rank, ranks)
        for linear in (attention.o_proj, mlp.down_proj):
            _keep(linear, 1, rank, ranks)
            linear.__class__ = SummedLinear
    if model.lm_head.out_features % ranks == 0:
        _keep(model.lm_head, 0, rank, ranks)
        model.lm_head.__class__ = GatheredLinear
    config.head_dim = model.model.layers[0].self_attn.head_dim
    config.num_attention_heads //= ranks
    config.num_key_value_heads //= ranks
    config.intermediate_size //= ranks


def _keep(linear: nn.Linear, dim: int, rank: int, ranks: int) -> None:
    """Keep the rank's part of a linear, of its outputs (0) or its inputs (1)."""
    part = linear.weight.data.chunk(ranks, dim)[rank].clone()
    linear.weight = nn.Parameter(part, requires_grad=False)
    linear.out_features, linear.in_features = part.shape
    if linear.bias is None:
        return
    if dim == 0:
        linear.bias = nn.Parameter(linear.bias.data.chunk(ranks)[rank].clone(), requires_grad=False)
    elif rank > 0:  # it is added once
        linear.register_parameter("bias", None)
