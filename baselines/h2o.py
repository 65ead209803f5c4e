"""H2O: heavy hitters, the tokens that have received most attention so far."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from scope.methods.decoding import Counts, DecodingStrategy, Score
from scope.methods.prefill import ScoredCompressor
from scope.methods.prompt import PromptAttention


@dataclass(frozen=True)
class H2O(ScoredCompressor):
    """Scores the prompt by the attention that each token receives from all queries.

    H2O, arXiv 2306.14048, section 4: column sums of the causal attention matrix.

    Attributes:
        causal_prefill_scores: if false, rows before the window also attend to later tokens, as in
            the published SCOPE code.
    """

    name: ClassVar[str] = "H2O"

    causal_prefill_scores: bool

    def scores(self, attention: PromptAttention) -> Tensor:
        window_start = attention.length - self.window_size
        if self.causal_prefill_scores:
            received = attention.received
        else:
            received = attention.column_sums(first_causal_row=window_start)
        return received[:, :window_start]


@dataclass(frozen=True)
class H2ODecoding(DecodingStrategy):
    """One budget of C + W over prompt and generation: the last R, and the heaviest of the others.

    Attributes:
        decoding_window_size: W.
        h2o_decoding_score: ``cumulative``, the paper's: attention summed over all queries since the
            token came, those of the prompt included; ``current``: the last query's alone.
    """

    name: ClassVar[str] = "h2o"
    unified: ClassVar[bool] = True

    decoding_window_size: int
    h2o_decoding_score: Literal["cumulative", "current"]

    @property
    def ranks_by(self) -> Score:
        return self.h2o_decoding_score

    def pool(self, step: Counts) -> Counts:
        return np.full_like(step, self.decoding_window_size)
