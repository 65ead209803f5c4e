"""The layers of a Llama, Mistral, Qwen2 or Qwen3 in a few launches each, on a GPU with Triton.

One loop over the layers serves a prompt and a decode step; only how they attend differs.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from scope.attention.interface import attend_to_prompt
from scope.attention.joined import are_joined, has_kernels, joined, model_obstacle
from scope.attention.tensor_parallel import combined
from scope.cache.cache import SlotCache

_KERNELS = "it takes Triton, a float type of up to 32 bits and a head size of 16, 32, 64 or 128"

# From an attention module, what it reads [n, hidden] and that projected to heads [n, H_q + 2 H, D],
# or [n, H_q, D] of a layer without slots, to what it gives [n, H_q D].
_Attend = Callable[[Any, Tensor, Tensor], Tensor]


def obstacle(model: PreTrainedModel, cache: SlotCache) -> str | None:
    """Why `fused_step` cannot run this model, or None."""
    return _layers_obstacle(model) if cache.fused else _KERNELS


def prompt_obstacle(model: PreTrainedModel) -> str | None:
    """Why `fused_prompt` cannot read with this model, or None."""
    if reason := _layers_obstacle(model):
        return reason
    if (name := model.config._attn_implementation) != "sdpa":
        return f"its attention is {name}, not sdpa"
    return None


def _layers_obstacle(model: PreTrainedModel) -> str | None:
    if reason := model_obstacle(model):
        return reason
    if not has_kernels(model):
        return _KERNELS
    if not are_joined(model):
        return "its weights are not joined; move the model to its device before `patch`"
    return None


def longest_prompt(model: PreTrainedModel) -> int | None:
    """The longest that `fused_prompt` reads, all of which a sliding window shows; None for any."""
    windows = [_sliding_window(layer.self_attn) for layer in model.model.layers]
    return min((window for window in windows if window is not None), default=None)


def fused_prompt(
    model: PreTrainedModel,
    cache: SlotCache,
    tokens: Tensor,
    positions: Tensor,
    last: Tensor,
    store: Callable[..., None],
) -> Tensor:
    """Read one prompt; the cache must have begun the forward.

    Args:
        model: one without `prompt_obstacle`.
        cache: what it is for.
        tokens: ``[L]``, up to `longest_prompt`; what comes after the last changes nothing.
        positions: ``[L]``.
        last: ``[1]`` which token the next one follows.
        store: as `SlotCache.store_prompt`, called for each layer.

    Returns:
        ``[vocabulary]`` logits of the first new token.
    """
    from scope.kernels.triton.rope import rotate_heads

    hidden, rotation = _embedded(model, tokens, positions)

    def attend(attention: Any, normed: Tensor, states: Tensor) -> Tensor:
        queries, keys, values = _parts(attention, states)
        turned = states if queries is keys else states[:, : -values.shape[1]]
        rotate_heads(turned, *rotation)
        queries, keys, values = (part.transpose(0, 1)[None] for part in (queries, keys, values))
        number, scaling, window = attention.layer_idx, attention.scaling, _sliding_window(attention)
        keys, values = cache.lending.states(number, keys, values)
        output, _, log_sum_exp = attend_to_prompt(
            attention, queries, keys, values, None, scaling=scaling, sliding_window=window
        )
        store(number, queries, keys, values, scaling, window, normed[None], log_sum_exp)
        return output[0].flatten(1)

    return _logits(model, _through_layers(model, cache, hidden, attend, last))[0]


def fused_step(model: PreTrainedModel, cache: SlotCache, tokens: Tensor) -> Tensor:
    """Decode one token per row; the cache must have begun the forward.

    Args:
        model: one without `obstacle`.
        cache: filled with the rows' prompts.
        tokens: ``[B]``.

    Returns:
        ``[B, vocabulary]`` logits of the next token.
    """
    hidden, rotation = _embedded(model, tokens, cache.positions)

    def attend(attention: Any, normed: Tensor, states: Tensor) -> Tensor:
        queries, keys, values = (part[:, :, None] for part in _parts(attention, states))
        scaling, window = attention.scaling, _sliding_window(attention)
        number = attention.layer_idx
        output = cache.attend(number, queries, keys, values, scaling, window, rotation)
        return output.flatten(1)

    return _logits(model, _through_layers(model, cache, hidden, attend))


def _embedded(
    model: PreTrainedModel, tokens: Tensor, positions: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What the first layer reads, ``[n, hidden]``, and cos and sin of RoPE, ``[n, D]``."""
    hidden = model.model.embed_tokens(tokens)
    cos, sin = model.model.rotary_emb(hidden, positions[None])
    return hidden, (cos[0], sin[0])


def _through_layers(
    model: PreTrainedModel,
    cache: SlotCache,
    hidden: Tensor,
    attend: _Attend,
    wanted: Tensor | None = None,
) -> Tensor:
    """What the head over the vocabulary reads, of the wanted rows.

    The rows ``[n, hidden]`` that come in are changed in place.
    """
    # Triton is there only where this runs.
    from scope.kernels.triton.linear import gated_linear
    from scope.kernels.triton.pointwise import add_and_norm

    layers = model.model.layers
    # Each branch ends in the norm that the next one begins with.
    norms = [layer.input_layernorm for layer in layers] + [model.model.norm]
    normed = add_and_norm(hidden, None, *_gain(norms[0]))
    for layer, next_norm in zip(layers, norms[1:], strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        borrows = cache.borrows(attention.layer_idx)
        attended = attend(attention, normed, _heads(attention, normed, borrows))
        if wanted is not None and layer is layers[-1]:
            attended, hidden = attended[wanted], hidden[wanted]
        branch = _branch(attention.o_proj, attended)
        normed = add_and_norm(hidden, branch, *_gain(layer.post_attention_layernorm))
        del attended, branch  # of a long prompt they would add to the peak that comes now
        branch = _branch(mlp.down_proj, gated_linear(normed, *joined(mlp.gate_proj, mlp.up_proj)))
        normed = add_and_norm(hidden, branch, *_gain(next_norm))
    return normed


def _heads(attention: Any, normed: Tensor, borrows: bool) -> Tensor:
    """Queries, keys and values, or of a layer without slots the queries: ``[n, heads, D]``."""
    from scope.kernels.triton.head_norm import norm_heads
    from scope.kernels.triton.linear import linear

    projections = [attention.q_proj, attention.k_proj, attention.v_proj][: 1 if borrows else 3]
    states = linear(normed, *joined(*projections))
    if hasattr(attention, "q_norm"):
        query_norm, key_norm = attention.q_norm, attention.k_norm
        norm_heads(
            states,
            query_norm.weight,
            key_norm.weight,
            query_norm.variance_epsilon,
            attention.q_proj.out_features // attention.head_dim,
            0 if borrows else attention.k_proj.out_features // attention.head_dim,
        )
    return states.unflatten(1, (-1, attention.head_dim))


def _parts(attention: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of `_heads`; where there are queries alone, they stand for all."""
    asking = attention.q_proj.out_features // attention.head_dim
    others = (states.shape[1] - asking) // 2
    return states.split([asking, others, others], dim=1) if others else (states, states, states)


def _branch(projection: nn.Linear, inner: Tensor) -> Tensor:
    """What a branch adds to the residual stream, in parts ``[parts, n, hidden]``."""
    from scope.kernels.triton.linear import linear_in_parts

    return combined(projection, linear_in_parts(inner, *joined(projection)))


def _logits(model: PreTrainedModel, normed: Tensor) -> Tensor:
    from scope.kernels.triton.linear import linear

    return combined(model.lm_head, linear(normed, *joined(model.lm_head)))


def _gain(norm: Any) -> tuple[Tensor, float]:
    return norm.weight, norm.variance_epsilon


def _sliding_window(attention: Any) -> int | None:
    """Qwen decides by layer, Mistral for the model; Llama has none."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window
    return getattr(attention.config, "sliding_window", None)
