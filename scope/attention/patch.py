"""Patching one model instance, and undoing it."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
)

from scope.attention.forward import attention_forward
from scope.cache.cache import SlotCache
from scope.errors import ScopeError

SUPPORTED_MODELS = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM)


@contextmanager
def patch(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Let one model instance generate with a `SlotCache`; other instances stay as they are.

    With any other cache, or none, the patched model does what it did before.

    Raises:
        ScopeError: for a model class that is not supported, or a model that is already patched.
    """
    if not isinstance(model, SUPPORTED_MODELS):
        raise ScopeError(
            f"{type(model).__name__} is not supported; expected one of "
            f"{', '.join(cls.__name__ for cls in SUPPORTED_MODELS)}"
        )
    modules = [layer.self_attn for layer in model.model.layers]
    if any("forward" in vars(module) for module in modules):
        raise ScopeError("the model's attention is already patched; leave the first patch first")
    for module in modules:
        module.forward = MethodType(attention_forward, module)
    hook = model.model.register_forward_pre_hook(_begin_forward, with_kwargs=True)
    model.generate = MethodType(_generate, model)
    try:
        yield model
    finally:
        hook.remove()
        del model.generate
        for module in modules:
            del module.forward


def _begin_forward(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before the decoder stack runs: tell the cache what comes, and set the true positions."""
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, SlotCache):
        return None
    tokens: Tensor | None = args[0] if args else kwargs.get("input_ids")
    if tokens is None:
        tokens = kwargs["inputs_embeds"]
    batch, length = tokens.shape[:2]
    mask = kwargs.get("attention_mask")
    ids = tokens if tokens.dim() == 2 else None
    positions = cache.begin_forward(batch, length, mask, tokens.device, ids)
    kwargs = {**kwargs, "position_ids": positions}
    if not cache.prefilling:
        # A mask that is 4D already is passed on as it is, and attention to slots ignores it.
        kwargs["attention_mask"] = torch.empty(batch, 1, 1, 0, device=tokens.device)
    return args, kwargs


def _generate(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
    """`generate`, from an empty cache: a prompt cannot be told from the rest of an earlier one."""
    cache = kwargs.get("past_key_values")
    if isinstance(cache, SlotCache):
        cache.reset()
    return type(self).generate(self, *args, **kwargs)
