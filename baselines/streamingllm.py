"""StreamingLLM: attention sinks and a sliding window."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from scope.methods.decoding import Counts, DecodingStrategy, Score
from scope.methods.prefill import PrefillCompressor
from scope.methods.prompt import PromptAttention

NUM_SINKS = 4


@dataclass(frozen=True)
class StreamingLLM(PrefillCompressor):
    """Keeps the first 4 tokens and the last C - 4.

    StreamingLLM, arXiv 2309.17453, section 3. Tokens keep their true positions; the original
    renumbers them inside the cache.

    Attributes:
        window_size: w, last tokens kept where ``streamingllm_sinks`` is ``half``.
        streamingllm_sinks: ``half`` keeps the first C - w and the last w tokens.
    """

    name: ClassVar[str] = "StreamingLLM"

    window_size: int
    streamingllm_sinks: Literal["4", "half"]

    def keep(self, attention: PromptAttention, capacity: int) -> Tensor:
        first = capacity - self.window_size if self.streamingllm_sinks == "half" else NUM_SINKS
        positions = torch.arange(attention.length, device=attention.keys.device)
        kept = torch.cat([positions[:first], positions[attention.length - capacity + first :]])
        return kept.expand(attention.keys.shape[0], -1)


@dataclass(frozen=True)
class StreamingLLMDecoding(DecodingStrategy):
    """One budget of C + W over prompt and generation: the first 4 entries and the most recent.

    Attributes:
        decoding_window_size: W.
        decoding_recent_size: R.
        streamingllm_sinks: with ``half``, the first C + W - R entries stay for ever and only R
            recent ones slide.
    """

    name: ClassVar[str] = "slm"
    unified: ClassVar[bool] = True

    decoding_window_size: int
    decoding_recent_size: int
    streamingllm_sinks: Literal["4", "half"]

    @property
    def ranks_by(self) -> Score:
        return "recent"

    def protected(self, frozen: Counts, base: Counts) -> Counts:
        beside_recent = base + self.decoding_window_size - self.decoding_recent_size
        if self.streamingllm_sinks == "half":
            return beside_recent
        return np.minimum(NUM_SINKS, beside_recent)

    def pool(self, step: Counts) -> Counts:
        return np.full_like(step, self.decoding_window_size)
