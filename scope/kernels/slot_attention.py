"""Decode attention over slots in plain torch: the reference and the CPU path."""

import torch
from torch import Tensor


def slot_attention(
    queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attend from one new token per row to all visible slots.

    Args:
        queries: ``[B, H_q, D]``.
        keys: ``[B, H, S, D]``, H dividing H_q.
        values: ``[B, H, S, D]``.
        visible: ``[B, H, S]`` bool; at least one slot per head.
        scaling: factor on the query-key products.

    Returns:
        The output ``[B, H_q, D]`` and the attention probabilities ``[B, H, H_q/H, S]`` in float32,
        0 where a slot is not visible.
    """
    batch, heads, slots, head_dim = keys.shape
    grouped = queries.view(batch, heads, -1, head_dim)
    logits = (grouped @ keys.transpose(2, 3)) * scaling
    logits = logits.masked_fill(~visible[:, :, None], -torch.inf)
    probabilities = logits.softmax(dim=-1, dtype=torch.float32)
    # A free slot may hold anything a freed row left behind, but never NaN: 0 * stale is 0.
    output = probabilities.to(values.dtype) @ values
    return output.view(batch, -1, head_dim), probabilities
