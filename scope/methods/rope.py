"""How fast RoPE turns the pairs of a head, for methods that foresee where a query will stand."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from scope.errors import ScopeError
from scope.kernels.tensors import rotated

# Families of which the i-th of D and the one D/2 later turn as a pair; others interleave pairs.
_FAMILIES = (
    "gemma3_text", "granite", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3",
    "qwen3_moe", "smollm3",
)  # fmt: skip
# Kinds of RoPE whose pace does not depend on how long the text is.
_STEADY = ("default", "linear", "llama3", "yarn")


def head_dim_of(config: PreTrainedConfig) -> int:
    """D, of a model."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def frequencies(config: PreTrainedConfig, layer: int) -> Tensor:
    """``[D/2]`` float32, by how much a position turns each pair, in one layer of a model.

    Raises:
        ScopeError: where that is not known.
    """
    parameters, layer_type = config.rope_parameters, None
    if "rope_type" not in parameters:  # every type of layer has its own
        layer_type = config.layer_types[layer]
        parameters = parameters[layer_type]
    kind, share = parameters["rope_type"], parameters.get("partial_rotary_factor", 1.0)
    if config.model_type not in _FAMILIES or kind not in _STEADY or share != 1.0:
        raise ScopeError(
            f"RoPE of {config.model_type} ({kind}, {share:g} of a head) is not one that methods "
            f"can foresee: that takes one of {', '.join(_FAMILIES)}, {', '.join(_STEADY)}, and "
            "whole heads; take another method"
        )
    head_dim = head_dim_of(config)
    turns = getattr(config, "no_rope_layers", None)
    if turns and not turns[layer]:
        return torch.zeros(head_dim // 2)
    if kind == "default":
        return parameters["rope_theta"] ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    return ROPE_INIT_FUNCTIONS[kind](config, layer_type=layer_type)[0].float()


def turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``[..., D]`` turned by RoPE on, by angles of pairs ``[..., D/2]``."""
    return rotated(states, torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1))


def mean_ahead(paces: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cos and sin over ``[n]`` numbers of steps, for paces ``[..., D/2]``."""
    angles = paces[..., None] * steps
    return angles.cos().mean(dim=-1), angles.sin().mean(dim=-1)
