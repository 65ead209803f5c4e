"""What a prefill compressor sees of one prompt in one layer: how often each token was attended."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from scope.kernels import has_kernels_for

GroupReduction = Literal["mean", "max"]

# Of the torch path: most query rows scored at once, and what a block of them may take. A logit, its
# probability in float32 and the rounded one are at most so many bytes.
_ROWS_PER_BLOCK = 256
_BYTES_PER_BLOCK = 2**28
_BYTES_PER_LOGIT = 12


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

    @cached_property
    def received(self) -> Tensor:
        """Causal attention that every key receives from all queries: ``column_sums()``, once."""
        return self.column_sums()

    def column_sums(self, first_row: int = 0, first_causal_row: int = 0) -> Tensor:
        """Attention that every key receives, summed over the queries from ``first_row`` on.

        Rows before ``first_causal_row`` attend to the whole prompt, as in the published SCOPE code;
        the others are causal. ``[H, L, L]`` never exists: memory is linear in L.

        Returns:
            ``[H, L]`` float32.
        """
        # The kernel gives a block of rows to one program, so the few of an observation window would
        # leave a GPU idle; a matrix product shares out their many columns.
        if self.length - first_row > _ROWS_PER_BLOCK and has_kernels_for(self.keys):
            from scope.kernels.column_sums import column_sums

            sums = column_sums(
                self.queries,
                self.keys,
                self.scaling,
                self.sliding_window,
                self.score_dtype,
                first_row,
                first_causal_row,
            )
        else:
            sums = self._column_sums(first_row, first_causal_row)
        sums = sums.view(self.keys.shape[0], -1, self.length).to(self.score_dtype)
        return reduce_group(sums, self.reduction).float()

    def _column_sums(self, first_row: int, first_causal_row: int) -> Tensor:
        """``[H_q, L]`` float32, in blocks of rows that take no more columns than they look at."""
        heads, length, head_dim = self.keys.shape
        num_queries = self.queries.shape[0]
        grouped = self.queries.view(heads, -1, length, head_dim)
        sums = grouped.new_zeros(heads, grouped.shape[1], length, dtype=torch.float32)
        columns = torch.arange(length, device=self.keys.device)
        block = _BYTES_PER_BLOCK // (_BYTES_PER_LOGIT * num_queries * length)
        block = min(max(block, 1), _ROWS_PER_BLOCK)
        for start in range(first_row, length, block):
            stop = min(start + block, length)
            end = length if start < first_causal_row else stop
            queries = grouped[:, :, start:stop].flatten(1, 2)
            logits = (queries @ self.keys[:, :end].transpose(1, 2)).mul_(self.scaling)
            rows = columns[start:stop, None]
            hidden = (columns[:end] > rows) & (rows >= first_causal_row)
            if self.sliding_window is not None:
                hidden |= columns[:end] <= rows - self.sliding_window
            logits = logits.view(heads, -1, stop - start, end).masked_fill_(hidden, -torch.inf)
            probabilities = logits.softmax(dim=-1, dtype=torch.float32).to(self.score_dtype)
            sums[..., :end] += probabilities.sum(dim=2, dtype=torch.float32)
        return sums.flatten(0, 1)
