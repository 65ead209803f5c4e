"""torch's fused attention, asked for what `scaled_dot_product_attention` keeps to itself."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

Attention = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def telling_attention(
    implementation: str,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    given: dict[str, Any],
) -> Attention | None:
    """What the model's own attention would do with a prompt, telling what its rows sum up to.

    Returns:
        Causal attention of ``[b, H_q, L, D]`` queries to ``[b, H, L, D]`` keys and values, with a
        factor on their products, that gives its output ``[b, L, H_q, D]`` and ``[b, H_q, L]``
        float32, the natural logarithm of the sum that each row's probabilities are normalised by.
        None where torch would choose what does not tell: another one might be slower than
        computing the sums anew.
    """
    if (
        implementation != "sdpa"
        or attention_mask is not None
        or not queries.is_cuda
        or queries.shape[2] == 1
        or given.get("dropout")
        or given.get("is_causal") is False
    ):
        return None
    chosen = torch._fused_sdp_choice(
        queries, keys, values, None, 0.0, True, scale=given.get("scaling"), enable_gqa=True
    )
    return _TELLING.get(chosen)


def _flash(queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    output, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention(
        queries, keys, values, is_causal=True, scale=scaling
    )[:2]
    return output.transpose(1, 2), log_sum_exp[:, :, : queries.shape[2]]  # it may be padded


def _cudnn(queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    output, log_sum_exp = torch.ops.aten._scaled_dot_product_cudnn_attention(
        queries, keys, values, None, compute_log_sumexp=True, is_causal=True, scale=scaling
    )[:2]
    return output.transpose(1, 2), log_sum_exp.view(queries.shape[:3])


_TELLING: dict[int, Attention] = {
    SDPBackend.FLASH_ATTENTION.value: _flash,
    SDPBackend.CUDNN_ATTENTION.value: _cudnn,
}
