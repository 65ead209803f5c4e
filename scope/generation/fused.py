"""One decode step of a Llama, Mistral or Qwen2 in a few launches, for a GPU with Triton."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from scope.attention.forward import sliding_window_of
from scope.cache.cache import SlotCache

# RoPE of these kinds depends on positions alone; others look at the longest one, on the host.
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


def obstacle(model: PreTrainedModel, cache: SlotCache) -> str | None:
    """Why `fused_step` cannot run this model, or None."""
    if not cache.fused:
        return "it takes Triton, a float type of up to 32 bits and a head size of 16, 32, 64 or 128"
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return "the model is spread over several devices"
    projections = {type(model.lm_head)} | {
        type(getattr(module, name))
        for layer in model.model.layers
        for module, names in ((layer.self_attn, "qkvo"), (layer.mlp, ("gate", "up", "down")))
        for name in (f"{part}_proj" for part in names)
    }
    if projections != {nn.Linear}:
        return f"its projections are {', '.join(sorted(cls.__name__ for cls in projections))}"
    if model.config.hidden_act != "silu":
        return f"its activation is {model.config.hidden_act}"
    if model.model.rotary_emb.rope_type not in _STATIC_ROPE:
        return f"its RoPE is of type {model.model.rotary_emb.rope_type}"
    return None


def fused_step(model: PreTrainedModel, cache: SlotCache, tokens: Tensor) -> Tensor:
    """Decode one token per row; the cache must have begun the forward.

    Args:
        model: one without `obstacle`. Projections that read the same input are joined, for good,
            but keep their values.
        cache: filled with the rows' prompts.
        tokens: ``[B]``.

    Returns:
        ``[B, vocabulary]`` logits of the next token.
    """
    # Triton is there only where this runs.
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
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        states = linear(normed, *_joined(*projections))
        queries, keys, values = (
            part.view(len(tokens), -1, 1, head_dim)
            for part in states.split([p.out_features for p in projections], dim=1)
        )
        attended = cache.attend(
            attention.layer_idx,
            queries,
            keys,
            values,
            attention.scaling,
            sliding_window_of(attention),
            rotation,
        ).view(len(tokens), -1)
        branch = linear_in_parts(attended, *_joined(attention.o_proj))
        normed = add_and_norm(hidden, branch, inner_norm.weight, inner_norm.variance_epsilon)
        inner = gated_linear(normed, *_joined(mlp.gate_proj, mlp.up_proj))
        branch = linear_in_parts(inner, *_joined(mlp.down_proj))
        normed = add_and_norm(hidden, branch, next_norm.weight, next_norm.variance_epsilon)
    return linear(normed, *_joined(model.lm_head))


def _joined(*linears: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of linears that read the same input as one."""
    biases = [linear.bias for linear in linears if linear.bias is not None]
    return _join([linear.weight for linear in linears]), _join(biases) if biases else None


def _join(parts: list[nn.Parameter]) -> Tensor:
    """The parts as one tensor; they become views of it, so that nothing is stored twice."""
    storages = {part.untyped_storage().data_ptr() for part in parts}
    if len(storages) > 1 or any(
        a.data_ptr() + a.nbytes != b.data_ptr() for a, b in pairwise(parts)
    ):
        with torch.inference_mode(False), torch.no_grad():
            whole = torch.cat([part.data for part in parts])
            for part, own in zip(parts, whole.split([len(part) for part in parts]), strict=True):
                part.data = own
    rows = sum(len(part) for part in parts)
    return parts[0].data.as_strided((rows, *parts[0].shape[1:]), parts[0].stride())
