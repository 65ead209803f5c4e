"""How attention reaches the slots: through transformers' own attention interface.

While a module attends with a `SlotCache`, its configuration names `attend` as the implementation.
What is under way lives in a context variable, so threads and models do not meet.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from scope.attention.log_sum_exp import telling_attention
from scope.cache.cache import SlotCache
from scope.errors import ScopeError

_NAME = "scope_slots"
# What some models hand to the interface and slots do not apply.
_FOREIGN = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices")


@dataclass(frozen=True)
class _Call:
    """An attention module's forward under way: its cache, its input and all that it was given."""

    cache: SlotCache
    hidden: Tensor
    given: tuple[Any, ...]


_under_way: ContextVar[_Call | None] = ContextVar("scope_attention_under_way", default=None)


@contextmanager
def routed(module: Any) -> Iterator[None]:
    """Let one attention module attend to slots where its forward is given a `SlotCache`."""
    AttentionInterface.register(_NAME, attend)
    own = module.config
    module.config = RoutedConfig(own)
    hooks = (
        module.register_forward_pre_hook(_begin, with_kwargs=True),
        module.register_forward_hook(_end, always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        module.config = own


class RoutedConfig:
    """A module's configuration as it is, but for the implementation while slots are attended to.

    Only attention modules have one: masks are made from the model's own configuration, for the
    model's own implementation, and models that share a configuration stay apart.
    """

    def __init__(self, own: PreTrainedConfig) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying asks for these before there is anything to ask
            raise AttributeError(name)
        return getattr(self._own, name)

    @property
    def _attn_implementation(self) -> str:
        return self._own._attn_implementation if _under_way.get() is None else _NAME


class _HandedOver:
    """Stands for the cache inside an attention module: `attend` has the states stored."""

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return keys, values

    def __getattr__(self, name: str) -> Any:
        raise ScopeError(
            f"the model's attention asks its cache for {name}, which slots do not have"
        )


def attend(
    module: Any,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of one module that was given a `SlotCache`.

    A prompt goes through the model's own implementation, and a decode step attends to the slots.

    Args:
        module: the attention module.
        queries: ``[B, H_q, L, D]``, after RoPE.
        keys: ``[B, H_kv, L, D]``; the same for values.
        attention_mask: as the model makes it for its implementation; unused in a decode step.
        kwargs: ``scaling``, ``sliding_window`` and what else the model hands to implementations.

    Returns:
        Output ``[B, L, H_q, D]``, and the attention weights where the implementation gives them.

    Raises:
        ScopeError: where this attention is more than slots can give.
    """
    call = _under_way.get()
    if call is None:
        raise ScopeError(
            f"{type(module).__name__} is not supported: it attends more than once a layer"
        )
    _under_way.set(None)  # from here on the module's configuration tells the truth
    _check(module, call, keys, values, attention_mask, kwargs)
    cache, number, sight = call.cache, module.layer_idx, sight_of(queries, kwargs)
    if not cache.prefilling:
        return cache.attend(number, queries, keys, values, *sight).transpose(1, 2), None
    keys, values = cache.lending.states(number, keys, values)
    states = queries, keys, values
    output, weights, log_sum_exp = attend_to_prompt(module, *states, attention_mask, **kwargs)
    cache.store_prompt(number, *states, *sight, call.hidden, log_sum_exp)
    return output, weights


def attend_to_prompt(
    module: Any,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Attention of prompts to themselves, by the model's own implementation.

    It is over full keys and values, so prompt logits are exact. The arguments are those of
    `attend`, and so is what it gives, and beside that, where the implementation can tell it,
    ``[b, H_q, L]`` float32: the logarithm of what its rows sum up to.
    """
    name = module.config._attn_implementation
    states = queries, keys, values
    if (telling := telling_attention(name, *states, attention_mask, kwargs)) is not None:
        scaling, _ = sight_of(queries, kwargs)
        output, log_sum_exp = telling(*states, scaling)
        return output, None, log_sum_exp
    own: Any = eager_attention(module)
    implementation = ALL_ATTENTION_FUNCTIONS.get_interface(name, own)
    return *implementation(module, *states, attention_mask, **kwargs), None


def sight_of(queries: Tensor, given: dict[str, Any]) -> tuple[float, int | None]:
    """Factor on the query-key products, and how many tokens back a query may look."""
    scaling = given.get("scaling")
    scaling = queries.shape[-1] ** -0.5 if scaling is None else scaling
    return scaling, given.get("sliding_window")


def eager_attention(module: nn.Module) -> Callable[..., Any] | None:
    """The eager implementation that a module falls back to; None if it does not use the interface.

    transformers keeps it beside the module's class, under one name in every model.
    """
    for cls in type(module).__mro__:
        names = vars(sys.modules[cls.__module__])
        if "ALL_ATTENTION_FUNCTIONS" in names and "eager_attention_forward" in names:
            return names["eager_attention_forward"]
    return None


def _check(
    module: Any,
    call: _Call,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    kwargs: dict[str, Any],
) -> None:
    """What only shows when the module attends."""
    name, config = type(module).__name__, module.config
    types = getattr(config, "layer_types", None) or ["full_attention"] * (module.layer_idx + 1)
    slides = types[module.layer_idx] == "sliding_attention"
    if slides and getattr(config, "sliding_window", None) != kwargs.get("sliding_window"):
        raise ScopeError(f"{name} is not supported: it does not say how far its window reaches")
    for foreign in _FOREIGN:
        if kwargs.get(foreign) is not None:
            raise ScopeError(f"{name} is not supported: slots do not apply its {foreign}")
    if keys.shape != values.shape:
        raise ScopeError(
            f"{name} is not supported: its keys and values have shapes {tuple(keys.shape)} and "
            f"{tuple(values.shape)}; slots take equal ones"
        )
    if attention_mask is not None and not any(attention_mask is given for given in call.given):
        raise ScopeError(f"{name} is not supported: it makes a mask of its own, slots apply none")


def _begin(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before an attention module runs: note its cache, which `attend` takes over, and its input."""
    given = (*args, *kwargs.values())
    cache = next((value for value in given if isinstance(value, SlotCache)), None)
    if cache is None:
        _under_way.set(None)
        return None
    hidden = args[0] if args else kwargs["hidden_states"]
    _under_way.set(_Call(cache, hidden, given))
    handed_over = _HandedOver()
    return (
        tuple(handed_over if value is cache else value for value in args),
        {name: handed_over if value is cache else value for name, value in kwargs.items()},
    )


def _end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """After an attention module has run or failed, when there is no output."""
    passed_by = _under_way.get() is not None
    _under_way.set(None)
    if passed_by and output is not None:
        raise ScopeError(
            f"{type(module).__name__} is not supported: its attention does not go through "
            "transformers' attention interface"
        )
