"""How close a compressed cache stays to the full one along the same text."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from scope.compression import Compression
from scope.generation.session import Session

FULL_CACHE = Compression("ALLKV", "None")


@dataclass(frozen=True)
class Agreement:
    """One text, compared at every token that was predicted from a compressed cache.

    Attributes:
        equal: for t = 1, 2 ..., whether the t-th would be the full cache's greedy choice too.
        kl: KL(full || compressed) there, in nats.
    """

    equal: Sequence[bool]
    kl: Sequence[float]


@torch.inference_mode()
def agreement(
    model: PreTrainedModel,
    compression: Compression,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> list[Agreement]:
    """Force a batch along given texts, once with each cache, and compare the predictions.

    Both caches decode by the same steps, the fused ones on a GPU, so that the full cache agrees
    with itself exactly. The first token of a text is left out: it comes from the uncompressed
    prompt.

    Args:
        model: a patched model.
        compression: what to keep.
        prompts: token ids of each prompt.
        texts: token ids that follow each, at least one; usually what the full cache generated.
        max_new_tokens: T of the compression.
    """
    sessions = [Session(model, one, prompts, max_new_tokens) for one in (FULL_CACHE, compression)]
    for session in sessions:
        session.prefill()
    compared: list[tuple[Tensor, Tensor]] = []
    for step in range(max(map(len, texts)) - 1):
        fed = torch.tensor([text[min(step, len(text) - 1)] for text in texts])
        expected, own = (session.step(fed).float().log_softmax(dim=-1) for session in sessions)
        equal = expected.argmax(dim=-1) == own.argmax(dim=-1)
        compared.append((equal, (expected.exp() * (expected - own)).sum(dim=-1)))
    if not compared:
        return [Agreement([], []) for _ in texts]
    # Read once: until here nothing has waited for the device.
    equal, kl = (torch.stack(parts, dim=1).tolist() for parts in zip(*compared, strict=True))
    lengths = [len(text) - 1 for text in texts]
    return [Agreement(e[:n], d[:n]) for e, d, n in zip(equal, kl, lengths, strict=True)]


def summary(compared: Sequence[Agreement]) -> dict[str, object]:
    """Shares of equal tokens and mean divergences: of all, by text, by distance from the prompt.

    ``by_prompt`` holds ``[tokens, share of equal ones, mean KL]`` of every text; ``by_distance``
    ``[first token, last token, tokens, share, mean KL]``, in ranges that double.
    """
    longest = max((len(one.equal) for one in compared), default=0)
    edges = [0, 1]
    while edges[-1] < longest:
        edges.append(2 * edges[-1])
    tokens, equal, kl = _means(compared)
    return {
        "tokens": tokens,
        "equal_tokens": equal,
        "mean_kl": kl,
        "by_prompt": [_means([one]) for one in compared],
        "by_distance": [
            [first + 1, min(last, longest), *_means(compared, slice(first, last))]
            for first, last in pairwise(edges)
            if first < longest
        ],
    }


def _means(compared: Sequence[Agreement], part: slice = slice(None)) -> tuple[int, float, float]:
    equal = [token for one in compared for token in one.equal[part]]
    kl = [token for one in compared for token in one.kl[part]]
    tokens = len(equal)
    if not tokens:
        return 0, float("nan"), float("nan")
    return tokens, sum(equal) / tokens, sum(kl) / tokens
