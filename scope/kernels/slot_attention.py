"""One decode step of a layer in plain torch: the reference, and what a CPU runs."""

import torch
from torch import Tensor

from scope.cache.layer import FREE, Ranking, SlotLayer
from scope.methods.prompt import reduce_group


def slot_attention(
    layer: SlotLayer,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    scaling: float,
    sliding_window: int | None,
    ranking: Ranking,
) -> Tensor:
    """Append one token per row, attend to all that is held, then evict what must go.

    Args:
        layer: the slots, and the counts of this step.
        queries: ``[B, H_q, D]``, after RoPE.
        keys: ``[B, H, D]`` of the new tokens, after RoPE, H dividing H_q.
        values: ``[B, H, D]``.
        positions: ``[B]`` int32 of the new tokens.
        scaling: factor on the query-key products.
        sliding_window: tokens back that a query may look, itself included; None for all.
        ranking: what decides between tokens.

    Returns:
        ``[B, H_q, D]``.
    """
    layer.append(keys, values, positions)
    used = slice(0, layer.used)
    held = layer.positions[:, :, used]
    visible = held != FREE
    if sliding_window is not None:
        visible &= held > (positions - sliding_window)[:, None, None]
    output, probabilities = _attend(
        queries, layer.keys[:, :, used], layer.values[:, :, used], visible, scaling
    )
    if ranking.score is not None:
        received = reduce_group(probabilities.to(ranking.dtype), ranking.reduction).float()
        if ranking.score == "cumulative":
            layer.scores[:, :, used] += received
        if layer.most_losses > 0:
            layer.evict(ranking, received)
    layer.find_vacant()
    return output


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Output ``[B, H_q, D]``, and probabilities ``[B, H, H_q/H, S]`` in float32."""
    batch, heads, _, head_dim = keys.shape
    grouped = queries.view(batch, heads, -1, head_dim)
    logits = (grouped @ keys.transpose(2, 3)) * scaling
    logits = logits.masked_fill(~visible[:, :, None], -torch.inf)
    probabilities = logits.softmax(dim=-1, dtype=torch.float32)
    output = probabilities.to(values.dtype) @ values
    return output.view(batch, -1, head_dim), probabilities
