"""The attention forward that every supported model shares while it is patched."""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from scope.cache.cache import SlotCache


def attention_forward(
    self: nn.Module,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Forward of a Llama, Mistral or Qwen2 attention module, bound to it as a method.

    A prompt goes through the model's own attention implementation over its full keys and values,
    so prompt logits are exact, and is compressed afterwards. A decode step attends to the slots.

    Args:
        self: the attention module.
        hidden_states: ``[B, L, hidden]``.
        position_embeddings: cos and sin of RoPE, ``[B, L, D]``.
        attention_mask: as the model makes it for its implementation; unused in a decode step.
        past_key_values: with anything but a `SlotCache` this is the module's own forward.
        kwargs: passed on to the attention implementation.

    Returns:
        Output ``[B, L, hidden]``, and the attention weights where the implementation gives them.
    """
    cache = past_key_values
    if not isinstance(cache, SlotCache):
        return type(self).forward(
            self,
            hidden_states,
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
    batch, length = hidden_states.shape[:-1]
    queries, keys, values = (
        project(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
        for project in (self.q_proj, self.k_proj, self.v_proj)
    )
    queries, keys = apply_rotary_pos_emb(queries, keys, *position_embeddings)
    sliding_window = sliding_window_of(self)
    states = (self.layer_idx, queries, keys, values, self.scaling, sliding_window)
    weights = None
    if cache.prefilling:
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            queries,
            keys,
            values,
            attention_mask,
            dropout=0.0,
            scaling=self.scaling,
            sliding_window=sliding_window,
            **kwargs,
        )
        cache.store_prompt(*states, hidden_states)
    else:
        output = cache.attend(*states).transpose(1, 2)
    return self.o_proj(output.reshape(batch, length, -1)), weights


def sliding_window_of(module: nn.Module) -> int | None:
    """Qwen2 decides by layer, Mistral for the model; Llama has none."""
    if hasattr(module, "sliding_window"):
        return module.sliding_window
    return getattr(module.config, "sliding_window", None)
