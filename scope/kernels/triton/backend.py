"""What `scope.kernels.Backend` names, on a GPU with Triton."""

import torch
from torch import Tensor

from scope.kernels import reference
from scope.kernels.triton.attention import attend, attend_and_evict, look
from scope.kernels.triton.choice import bring, choose
from scope.kernels.triton.column_sums import column_sums as column_sums_of_many_rows
from scope.kernels.triton.cosines import cosine_sums
from scope.kernels.triton.eviction import evict
from scope.kernels.triton.filling import fill, filler
from scope.kernels.triton.folding import fold
from scope.kernels.triton.last_queries import attention_sums, product_sums

__all__ = [
    "attend",
    "attend_and_evict",
    "attention_sums",
    "bring",
    "choose",
    "column_sums",
    "cosine_sums",
    "evict",
    "fill",
    "filler",
    "fold",
    "look",
    "product_sums",
]

# The kernel gives a block of rows to one program, so the few of an observation window would leave a
# GPU idle; a matrix product shares out their many columns.
_FEW_ROWS = 256


def column_sums(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    sliding_window: int | None,
    score_dtype: torch.dtype,
    first_row: int = 0,
    first_causal_row: int = 0,
    log_sum_exp: Tensor | None = None,
    squared: bool = False,
    lag: int = 0,
) -> Tensor:
    """Attention that every key receives from each query head; see `Backend`."""
    asked = queries, keys, scaling, sliding_window, score_dtype, first_row, first_causal_row
    if keys.shape[1] - first_row <= _FEW_ROWS:
        # Normalises by what it has rounded itself.
        return reference.column_sums(*asked, squared=squared, lag=lag)
    return column_sums_of_many_rows(*asked, log_sum_exp, squared, lag)
