"""Which models can generate from slots, told from their modules or from a configuration alone."""

from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from scope.attention.interface import eager_attention
from scope.errors import ScopeError

_LAYER_TYPES = {"full_attention", "sliding_attention"}


def check_config(config: PreTrainedConfig) -> None:
    """Refuse a configuration whose model is not supported; no weights are needed or allocated.

    Raises:
        ScopeError: naming the model and why.
    """
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is None:
        raise ScopeError(f"{config.model_type} models are not supported: they are no causal LMs")
    try:
        with torch.device("meta"):
            model = model_class._from_config(config)
    except Exception as error:  # whatever a class makes of a setting that it does not know
        reason = " ".join(str(error).split())
        raise ScopeError(
            f"{model_class.__name__} cannot be made from its config: {reason}"
        ) from error
    check_model(model)


def check_model(model: nn.Module) -> None:
    """Refuse a model that cannot generate from slots.

    Raises:
        ScopeError: naming the model and why.
    """
    if not isinstance(model, PreTrainedModel):
        raise ScopeError(
            f"{type(model).__name__} is not supported: expected a causal LM of transformers itself"
        )
    if reason := _obstacle(model):
        raise ScopeError(f"{type(model).__name__} is not supported: {reason}")


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that attend, one a layer in a supported model."""
    modules = model.get_decoder().modules()
    return [module for module in modules if _has(module, "is_causal", "layer_idx", "config")]


def _obstacle(model: PreTrainedModel) -> str | None:
    config, modules = model.config, attention_modules(model)
    if config.is_encoder_decoder or model.get_output_embeddings() is None:
        return "it is no decoder with a language modelling head"
    if "position_ids" not in signature(model.get_decoder().forward).parameters:
        return "its decoder takes no position_ids"
    other_types = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if other_types:
        return f"slots do not hold layers of type {', '.join(sorted(other_types))}"
    if [module.layer_idx for module in modules] != list(range(_layers(config))):
        return "not every layer has one attention of keys and values"
    if getattr(config, "num_kv_shared_layers", None):
        return "its layers share keys and values"
    return next(filter(None, map(_attention_obstacle, modules)), None)


def _attention_obstacle(module: nn.Module) -> str | None:
    if eager_attention(module) is None:
        return "its attention does not go through transformers' attention interface"
    if not module.is_causal:
        return "its attention is not causal"
    if getattr(module, "attn_logit_softcapping", None) is not None:
        return "slots do not apply its attention soft-capping"
    if _has(module, "sinks"):
        return "slots do not apply its attention sinks"
    if _has(module, "kv_lora_rank"):
        return "its latent attention (MLA) has keys and values of different sizes"
    return None


def _layers(config: PreTrainedConfig) -> int:
    return getattr(config, "num_hidden_layers", 0)


def _has(module: Any, *names: str) -> bool:
    return all(hasattr(module, name) for name in names)
