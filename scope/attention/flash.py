"""torch's flash attention, asked for what `scaled_dot_product_attention` keeps to itself."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend


def tells_log_sum_exp(
    implementation: str,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    given: dict[str, Any],
) -> bool:
    """Whether `causal_attention` does what the model's own attention would do with a prompt.

    It does where torch chooses flash attention itself. On newer GPUs torch has a faster one, beside
    which a second pass over the products costs less than flash attention's sums are worth.
    """
    if (
        implementation != "sdpa"
        or attention_mask is not None
        or not queries.is_cuda
        or queries.shape[2] == 1
        or given.get("dropout")
        or given.get("is_causal") is False
    ):
        return False
    chosen = torch._fused_sdp_choice(
        queries, keys, values, None, 0.0, True, scale=given.get("scaling"), enable_gqa=True
    )
    return chosen == SDPBackend.FLASH_ATTENTION.value


def causal_attention(
    queries: Tensor, keys: Tensor, values: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Causal attention of ``[b, H_q, L, D]`` queries to ``[b, H, L, D]`` keys and values.

    Returns:
        Output ``[b, L, H_q, D]``, and ``[b, H_q, L]`` float32, the natural logarithm of the sum
        that each row's probabilities are normalised by.
    """
    output, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention(
        queries, keys, values, 0.0, is_causal=True, scale=scaling
    )[:2]
    return output.transpose(1, 2), log_sum_exp[:, :, : queries.shape[2]]
