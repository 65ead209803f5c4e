"""torch's flash attention, asked for what `scaled_dot_product_attention` keeps to itself."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

_LARGEST_HEAD = 256


def tells_log_sum_exp(
    implementation: str, queries: Tensor, attention_mask: Tensor | None, given: dict[str, Any]
) -> bool:
    """Whether a prompt's attention is one that `causal_attention` can do in the model's place.

    It is what torch chooses itself there: causal attention without a mask, in 16 bits on a GPU.
    """
    return (
        implementation == "sdpa"
        and attention_mask is None
        and queries.is_cuda
        and _has_flash_attention(queries.device)
        and queries.dtype in (torch.bfloat16, torch.float16)
        and queries.shape[2] > 1
        and queries.shape[3] % 8 == 0
        and queries.shape[3] <= _LARGEST_HEAD
        and not given.get("dropout")
        and given.get("is_causal") is not False
    )


@cache
def _has_flash_attention(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


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
