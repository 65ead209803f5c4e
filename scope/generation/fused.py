"""One decode step of a Llama, Mistral, Qwen2 or Qwen3 in a few launches, for a GPU with Triton."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from scope.attention.joined import are_joined, joined, model_obstacle
from scope.attention.tensor_parallel import combined
from scope.cache.cache import SlotCache


def obstacle(model: PreTrainedModel, cache: SlotCache) -> str | None:
    """Why `fused_step` cannot run this model, or None."""
    if not cache.fused:
        return "it takes Triton, a float type of up to 32 bits and a head size of 16, 32, 64 or 128"
    if reason := model_obstacle(model):
        return reason
    if not are_joined(model):
        return "its weights are not joined; move the model to its device before `patch`"
    return None


def fused_step(model: PreTrainedModel, cache: SlotCache, tokens: Tensor) -> Tensor:
    """Decode one token per row; the cache must have begun the forward.

    Args:
        model: one without `obstacle`.
        cache: filled with the rows' prompts.
        tokens: ``[B]``.

    Returns:
        ``[B, vocabulary]`` logits of the next token.
    """
    # Triton is there only where this runs.
    from scope.kernels.triton.head_norm import norm_heads
    from scope.kernels.triton.linear import gated_linear, linear, linear_in_parts
    from scope.kernels.triton.pointwise import add_and_norm

    decoder, head_dim = model.model, model.model.layers[0].self_attn.head_dim
    hidden = decoder.embed_tokens(tokens)
    cos, sin = decoder.rotary_emb(hidden, cache.positions[:, None])
    rotation = cos[:, 0].contiguous(), sin[:, 0].contiguous()
    # Each branch ends in the norm that the next one begins with.
    norms = [layer.input_layernorm for layer in decoder.layers] + [decoder.norm]
    normed = add_and_norm(hidden, None, norms[0].weight, norms[0].variance_epsilon)
    for layer, next_norm in zip(decoder.layers, norms[1:], strict=True):
        attention, mlp, inner_norm = layer.self_attn, layer.mlp, layer.post_attention_layernorm
        # A layer without slots asks, and brings nothing.
        borrows = cache.borrows(attention.layer_idx)
        projections = [attention.q_proj, attention.k_proj, attention.v_proj][: 1 if borrows else 3]
        states = linear(normed, *joined(*projections))
        if hasattr(attention, "q_norm"):
            query_norm, key_norm = attention.q_norm, attention.k_norm
            norm_heads(
                states,
                query_norm.weight,
                key_norm.weight,
                query_norm.variance_epsilon,
                attention.config.num_attention_heads,
                0 if borrows else attention.config.num_key_value_heads,
            )
        parts = [
            part.view(len(tokens), -1, 1, head_dim)
            for part in states.split([p.out_features for p in projections], dim=1)
        ]
        queries, keys, values = parts * 3 if borrows else parts
        attended = cache.attend(
            attention.layer_idx,
            queries,
            keys,
            values,
            attention.scaling,
            _sliding_window(attention),
            rotation,
        ).view(len(tokens), -1)
        branch = combined(attention.o_proj, linear_in_parts(attended, *joined(attention.o_proj)))
        normed = add_and_norm(hidden, branch, inner_norm.weight, inner_norm.variance_epsilon)
        inner = gated_linear(normed, *joined(mlp.gate_proj, mlp.up_proj))
        branch = combined(mlp.down_proj, linear_in_parts(inner, *joined(mlp.down_proj)))
        normed = add_and_norm(hidden, branch, next_norm.weight, next_norm.variance_epsilon)
    return combined(model.lm_head, linear(normed, *joined(model.lm_head)))


def _sliding_window(attention: Any) -> int | None:
    """Qwen decides by layer, Mistral for the model; Llama has none."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window
    return getattr(attention.config, "sliding_window", None)
