"""What a prefill compressor sees of one prompt in one layer: how often each token was attended."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

GroupReduction = Literal["mean", "max"]

# Query rows scored at once. Peak memory is H_q x rows x L floats, so it stays linear in L.
_ROWS_PER_BLOCK = 256


def reduce_group(values: Tensor, reduction: GroupReduction) -> Tensor:
    """Reduce ``[..., H_kv, group, n]`` over the query heads that share a KV head.

    Returns:
        ``[..., H_kv, n]``.
    """
    return values.mean(dim=-2) if reduction == "mean" else values.amax(dim=-2)


@dataclass(frozen=True)
class PromptAttention:
    """Queries and keys of one sequence in one layer, after RoPE, without padding.

    Attributes:
        queries: ``[H_q, L, D]``.
        keys: ``[H, L, D]``, H the number of cached heads; it divides H_q.
        scaling: factor on the query-key products.
        sliding_window: how many tokens back a query may look, itself included; None for all.
        reduction: how the scores of the query heads of a group become one.
        score_dtype: probabilities and sums are rounded to this dtype before they are ranked.
    """

    queries: Tensor
    keys: Tensor
    scaling: float
    sliding_window: int | None = None
    reduction: GroupReduction = "mean"
    score_dtype: torch.dtype = torch.float32

    @property
    def length(self) -> int:
        return self.keys.shape[1]

    def column_sums(self, first_row: int = 0, first_causal_row: int = 0) -> Tensor:
        """Attention that every key receives, summed over the queries from ``first_row`` on.

        Rows before ``first_causal_row`` attend to the whole prompt, as in the published SCOPE code;
        the others are causal. Computed in blocks of rows: ``[H, L, L]`` never exists.

        Returns:
            ``[H, L]`` float32.
        """
        heads, length, head_dim = self.keys.shape
        group = self.queries.shape[0] // heads
        queries = self.queries.view(heads, group, length, head_dim)
        columns = torch.arange(length, device=self.keys.device)
        sums = torch.zeros(heads, group, length, dtype=torch.float32, device=self.keys.device)
        for start in range(first_row, length, _ROWS_PER_BLOCK):
            rows = columns[start : start + _ROWS_PER_BLOCK, None]
            block = queries[:, :, start : start + _ROWS_PER_BLOCK].flatten(1, 2)
            logits = (block @ self.keys.transpose(1, 2)) * self.scaling
            hidden = (columns > rows) & (rows >= first_causal_row)
            if self.sliding_window is not None:
                hidden |= columns <= rows - self.sliding_window
            logits = logits.view(heads, group, -1, length).masked_fill(hidden, -torch.inf)
            probabilities = logits.softmax(dim=-1, dtype=torch.float32).to(self.score_dtype)
            sums += probabilities.sum(dim=2, dtype=torch.float32)
        return reduce_group(sums.to(self.score_dtype), self.reduction).float()
