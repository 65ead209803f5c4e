"""Patching one model instance, and undoing it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from scope.attention.interface import RoutedConfig, routed
from scope.attention.joined import joined_weights
from scope.attention.support import attention_modules, check_model
from scope.cache.cache import SlotCache
from scope.errors import ScopeError

# What `generate` gives a prompt where nobody says a length.
_DEFAULT_NEW_TOKENS = 20


@contextmanager
def patch(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Let one model instance generate with a `SlotCache`; other instances stay as they are.

    With any other cache, or none, the patched model does what it did before. On a GPU with Triton,
    projections that a decode step can do at once are one tensor inside the block.

    Args:
        model: a causal LM of transformers, or a PEFT model of one; any device map.

    Raises:
        ScopeError: for a model that is not supported, or one that is already patched.
    """
    inner = _without_adapters(model)
    check_model(inner)
    modules = attention_modules(inner)
    if isinstance(modules[0].config, RoutedConfig):
        raise ScopeError("the model's attention is already patched; leave the first patch first")
    with ExitStack() as undo:
        undo.enter_context(joined_weights(inner))
        for module in modules:
            undo.enter_context(routed(module))
        begin = partial(_begin_forward, len(modules))
        hook = inner.get_decoder().register_forward_pre_hook(begin, with_kwargs=True)
        undo.callback(hook.remove)
        inner.generate = MethodType(_generate, inner)
        undo.callback(delattr, inner, "generate")
        yield model


def _without_adapters(model: Any) -> Any:
    """The model whose layers a PEFT model has adapted."""
    if not hasattr(model, "get_base_model"):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise ScopeError(
            f"{type(model).__name__} is not supported with {model.active_peft_config.peft_type}: "
            "its learned prompt is a cache of its own"
        )
    return model.get_base_model()


def _begin_forward(
    layers: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before the decoder stack runs: tell the cache what comes, and set the true positions."""
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, SlotCache):
        return None
    if cache.num_layers != layers:
        raise ScopeError(
            f"the SlotCache was made for {cache.num_layers} layers and the model has {layers}; "
            "make it from this model's config"
        )
    tokens: Tensor | None = args[0] if args else kwargs.get("input_ids")
    if tokens is None:
        tokens = kwargs["inputs_embeds"]
    batch, length = tokens.shape[:2]
    mask = kwargs.get("attention_mask")
    ids = tokens if tokens.dim() == 2 else None
    positions = cache.begin_forward(batch, length, mask, tokens.device, ids)
    _check_positions(kwargs.get("position_ids"), positions, mask if cache.prefilling else None)
    kwargs = {**kwargs, "position_ids": positions}
    if not cache.prefilling:
        # A mask that is 4D already is passed on as it is, and attention to slots ignores it.
        kwargs["attention_mask"] = torch.empty(batch, 1, 1, 0, device=tokens.device)
    return args, kwargs


def _check_positions(given: Tensor | None, own: Tensor, mask: Tensor | None) -> None:
    """Refuse positions other than the cache's; on padding they mean nothing."""
    if given is None:
        return
    try:
        differs = given.expand_as(own) != own
    except RuntimeError:
        differs = torch.ones_like(own, dtype=torch.bool)
    if bool((differs if mask is None else differs & mask.bool()).any()):
        raise ScopeError(
            "position_ids differ from those of the SlotCache, which counts every row's tokens "
            "from 0; leave position_ids out"
        )


def _generate(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
    """`generate`, from an empty cache: more turns of a chat would be appended to what is held, but
    slots take one token at a time.
    """
    cache = kwargs.get("past_key_values")
    if isinstance(cache, SlotCache):
        if cache.planned:
            raise ScopeError(
                "the SlotCache already holds a text, and a second turn cannot go on from it; call "
                "cache.reset() to forget it, and give generate the whole chat"
            )
        wanted = _new_tokens(self, *args, **kwargs)
        if wanted > cache.max_new_tokens:
            raise ScopeError(
                f"generate is asked for {wanted} new tokens and the SlotCache was made for "
                f"{cache.max_new_tokens}; make it with max_new_tokens={wanted}"
            )
    own: Any = type(self)
    return own.generate(self, *args, **kwargs)


def _new_tokens(
    model: PreTrainedModel,
    inputs: Tensor | None = None,
    generation_config: Any = None,
    **kwargs: Any,
) -> int:
    """Most tokens that this call of `generate` may give."""

    def setting(name: str) -> int | None:
        sources = (
            kwargs.get(name),
            *(
                getattr(config, name, None)
                for config in (generation_config, model.generation_config)
            ),
        )
        return next((value for value in sources if value is not None), None)

    new, total = setting("max_new_tokens"), setting("max_length")
    if new is not None or total is None:
        return _DEFAULT_NEW_TOKENS if new is None else new
    prompts = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), inputs)
    return total - next((prompt.shape[1] for prompt in prompts if prompt is not None), 0)
