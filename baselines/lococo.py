"""LoCoCo: what has no slot of its own is mixed into a fixed number of others by a convolution."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from baselines.h2o import H2O
from baselines.lococo_heads import RECALL, Trained, path_of
from scope.errors import ScopeError
from scope.kernels.folding import folded
from scope.methods.budget import Share, least, on_device
from scope.methods.compressor import Compressor
from scope.methods.fidelity import Fidelity
from scope.methods.options import option
from scope.methods.prompt import Entries, Prompt
from scope.methods.score import Score, Slots
from scope.methods.strategy import NEVER, Counts, Occupancy, RecentWindow
from scope.scores.cumulative import Cumulative

_HEADS = "trained heads: recall, or a safetensors file of scripts/train_lococo.py"


@dataclass(frozen=True)
class LoCoCo(Trained, H2O):
    """H2O's choice, the lightest of which are pivots that everything dropped is mixed into.

    LoCoCo, arXiv 2406.05317. Of C tokens a head holds, C - M stay as they are: the last w (the
    published ``local_len``, there 0) and the heaviest. The M next heaviest are pivots, as many as
    the heads were trained to merge into; `Mixer` says what becomes of them. A head with fewer
    than M slots beside its window takes the first channels. With g = 0 this is H2O.

    The prompt is one block after an empty memory, so all its queries rank it. Every KV head is
    merged by itself, scored by the query heads of its group (the paper has no groups).
    """

    name: ClassVar[str] = "LoCoCo"
    about: ClassVar[str] = "H2O's, its lighter half mixed with what is dropped by trained heads"

    heads: str = option(RECALL, _HEADS, file=path_of)

    def __post_init__(self) -> None:
        super().__post_init__()
        path_of(self.heads)

    @classmethod
    def under(cls, fidelity: Fidelity) -> type[Compressor]:
        return cls

    def compress(self, prompt: Prompt, share: Share) -> Entries:
        heads = self.heads_for(prompt.keys)
        window = min(self.window_size, prompt.length, least(share))
        scores = prompt.heads.joined(self.score(prompt), len(prompt.keys))
        rest, pivots = split(scores, share, window, heads.slots)
        fewest = least(share) - window
        places, keys, values = folded(
            prompt.keys,
            prompt.values,
            rest,
            pivots,
            order=torch.arange(prompt.length, device=rest.device).expand_as(rest),
            most=prompt.length - window - fewest + min(heads.slots, fewest),
            mixer=heads.of(prompt.layer),
        )
        merged = replace(
            prompt,
            keys=prompt.keys.scatter(1, places, keys),
            values=prompt.values.scatter(1, places, values),
        )
        return merged.take(self.keep(prompt, share))


@dataclass(frozen=True)
class LoCoCoDecoding(Trained, RecentWindow):
    """One budget of C + W over prompt and generation: what overflows it is folded in, P at a time.

    The published memory is folded to m entries before a block where it has more than m + 16; here
    so that it never has more than C + W, m being C + W - P. Of those that are not among the last R,
    the P lightest leave, mixed into the M next lightest, which stay where they are and keep their
    score. That is attention summed since a token came, where the published code sums over the last
    block alone, which while decoding would be one query. With g = 0 this is `h2o`, cut to every P
    steps.
    """

    name: ClassVar[str] = "lococo"
    about: ClassVar[str] = "baseline: one budget C + W, what overflows is mixed in (trained)"
    unified: ClassVar[bool] = True
    score: ClassVar[type[Score] | None] = Cumulative
    takes_score: ClassVar[bool] = False

    period: int = option(16, "P, steps from one eviction to the next")
    heads: str = option(RECALL, _HEADS, file=path_of)

    def __post_init__(self) -> None:
        super().__post_init__()
        path_of(self.heads)
        if not 1 <= self.period <= self.decoding_window_size:
            raise ScopeError(
                f"period is {self.period}; it must be at least 1 and at most decoding_window_size "
                f"{self.decoding_window_size}"
            )

    def targets(self, now: Occupancy) -> Counts:
        budget = now.base + self.decoding_window_size
        return np.where(now.lengths > budget, budget + 1 - self.period, NEVER)

    def rewrite(self, slots: Slots, leaving: Tensor) -> None:
        heads = self.heads_for(slots.keys)
        # A head's own lightest leave, but where heads share: what leaves is folded in any case.
        slots.backend.fold(
            slots.keys,
            slots.values,
            slots.ranks,
            slots.state["total"],
            leaving,
            slots.newest - self.recent,
            self.period + heads.slots,
            heads.of(slots.layer),
        )


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
    kept = on_device(share, scores.device)[..., None] - window
    # Where nothing is dropped, there is nothing to mix in.
    rest = (rank >= (kept - slots).clamp(min=0)) & (kept < before)
    return rest, rest & (rank < kept)
