"""LoCoCo: what has no slot of its own is mixed into a fixed number of others by a convolution."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from baselines.h2o import H2O
from baselines.lococo_heads import RECALL, Trained, path_of
from scope.methods.budget import Share
from scope.methods.compressor import Compressor
from scope.methods.fidelity import Fidelity
from scope.methods.options import option
from scope.methods.prompt import Entries, Prompt

_HEADS = "trained heads: recall, or a safetensors file of scripts/train_lococo.py"


@dataclass(frozen=True)
class LoCoCo(Trained, H2O):
    """H2O's choice, the lightest of which are pivots that everything dropped is mixed into.

    LoCoCo, arXiv 2406.05317. Of C tokens a head holds, C - M stay as they are: the last w (the
    published ``local_len``, there 0) and the heaviest. The M next heaviest are pivots, as many as
    the heads were trained to merge into; `Heads.mix` says what becomes of them. A head with fewer
    than M slots beside its window takes the first channels. With g = 0 this is H2O.

    The prompt is one block after an empty memory, so all its queries rank it. Every KV head is
    merged by itself, scored by the query heads of its group (the paper has no groups).
    """

    name: ClassVar[str] = "LoCoCo"
    about: ClassVar[str] = "H2O's, its lighter half mixed with what is dropped by trained heads"

    heads: str = option(RECALL, _HEADS)

    def __post_init__(self) -> None:
        super().__post_init__()
        path_of(self.heads)

    @classmethod
    def under(cls, fidelity: Fidelity) -> type[Compressor]:
        return cls

    def compress(self, prompt: Prompt, share: Share) -> Entries:
        heads = self.heads_for(prompt.keys, prompt.layer)
        window = min(self.window_size, prompt.length, int(np.min(share)))
        rest, pivots = split(self.score(prompt), share, window, heads.slots)
        least = int(np.min(share)) - window
        merged = heads.fold(
            prompt.layer,
            prompt.keys,
            prompt.values,
            rest,
            pivots,
            order=torch.arange(prompt.length, device=rest.device).expand_as(rest),
            most=prompt.length - window - least + min(heads.slots, least),
        )
        return replace(prompt, keys=merged[0], values=merged[1]).take(self.keep(prompt, share))


def split(scores: Tensor, share: Share, window: int, slots: int) -> tuple[Tensor, Tensor]:
    """Which tokens are merged, and which of these are pivots.

    Args:
        scores: ``[..., S]``; the heavier stay as they are, the lighter of those kept are pivots.
        share: how many tokens are kept: one number, or one for each of the last rows.
        window: of these, so many last ones that stay as they are.
        slots: most pivots of a row.

    Returns:
        Two ``[..., S]`` bool, the second within the first.
    """
    before = scores.shape[-1] - window
    ranked = scores[..., :before].sort(dim=-1, descending=True, stable=True).indices
    rank = torch.full(scores.shape, -1, device=scores.device)
    places = torch.arange(before, device=scores.device).expand_as(ranked)
    rank[..., :before] = torch.zeros_like(ranked).scatter(-1, ranked, places)
    kept = torch.as_tensor(share, device=scores.device)[..., None] - window
    # Where nothing is dropped, there is nothing to mix in.
    rest = (rank >= (kept - slots).clamp(min=0)) & (kept < before)
    return rest, rest & (rank < kept)
