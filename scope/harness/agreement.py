"""How close a compressed cache stays to the full one along the same text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from scope.compression import Compression
from scope.generation.session import Session


@dataclass(frozen=True)
class Agreement:
    """Compared at every token that was predicted from a compressed cache.

    Attributes:
        tokens: how many were compared.
        equal: of those, how many would be the full cache's greedy choice.
        kl: sum over them of KL(full || compressed), in nats.
    """

    tokens: int = 0
    equal: int = 0
    kl: float = 0.0

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(self.tokens + other.tokens, self.equal + other.equal, self.kl + other.kl)

    def summary(self) -> dict[str, float | int]:
        """Share of equal tokens and mean divergence."""
        return {
            "tokens": self.tokens,
            "equal_tokens": self.equal / self.tokens if self.tokens else float("nan"),
            "mean_kl": self.kl / self.tokens if self.tokens else float("nan"),
        }


@torch.inference_mode()
def agreement(
    model: PreTrainedModel,
    compression: Compression,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> Agreement:
    """Force a batch along given texts and compare each prediction with the full cache's.

    The first token of a text is left out: it comes from the uncompressed prompt.

    Args:
        model: a patched model.
        compression: what to keep.
        prompts: token ids of each prompt.
        texts: token ids that follow each, at least one; usually what the full cache generated.
        max_new_tokens: T of the compression.
    """
    full = [_full_logits(model, p, t) for p, t in zip(prompts, texts, strict=True)]
    session = Session(model, compression, prompts, max_new_tokens)
    session.prefill()
    total = Agreement()
    for step in range(max(len(text) for text in texts) - 1):
        fed = torch.tensor([text[min(step, len(text) - 1)] for text in texts])
        logits = session.step(fed).float().log_softmax(dim=-1)
        for row, text in enumerate(texts):
            if step + 1 < len(text):
                expected = full[row][step].float().log_softmax(dim=-1)
                equal = int(expected.argmax() == logits[row].argmax())
                divergence = float((expected.exp() * (expected - logits[row])).sum())
                total += Agreement(1, equal, divergence)
    return total


def _full_logits(model: PreTrainedModel, prompt: Sequence[int], text: Sequence[int]) -> Tensor:
    """``[len(text) - 1, vocabulary]``: predictions of the second and later tokens of the text."""
    tokens = torch.tensor([[*prompt, *text[:-1]]], device=model.device)
    keep = max(len(text) - 1, 1)
    return model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits[0]
