"""KVMerger: neighbours with similar keys become one entry."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from baselines.h2o import H2O
from scope.errors import ScopeError
from scope.methods.budget import Part, Share, least, on_device
from scope.methods.compressor import Compressor, window_and_best
from scope.methods.fidelity import Fidelity
from scope.methods.options import option
from scope.methods.prompt import Entries, Prompt


@dataclass(frozen=True)
class KVMerger(H2O):
    """Merges runs of tokens whose keys resemble those before them, around the one most attended to.

    KVMerger, arXiv 2407.08454. Token i joins i - 1 where cos(k_i, k_(i-1)) > eps; the last w tokens
    and the heaviest join none. A run is one entry at the place of its pivot p, its heaviest token:

        g_i = exp(-|k_p - k_i|^2 / (2 sigma^2)),  w_i = g_i / sum_j g_j
        k' = sum_i w_i k_i,  v' = sum_i w_i v_i                     [D], sums over the run

    The paper's budget comes of eps. Here C is met exactly: of the pairs above eps the most similar
    join until C entries a head are left; where there are too few, the lightest entries are dropped,
    as by H2O, which this is with eps 1 or more. Other readings: keys are compared and mixed after
    RoPE, as they are cached; protected are w tokens and a share of the prompt; every layer is
    compressed, none is left out. While decoding nothing is merged.
    """

    name: ClassVar[str] = "KVMerger"
    about: ClassVar[str] = "runs of similar keys as one entry, Gaussian weights around the heaviest"
    headwise: ClassVar[bool] = True
    own_choice: ClassVar[Part | None] = "head"

    least_similarity: float = option(0.75, "eps, cosine of neighbouring keys above which they join")
    sigma: float = option(5.0, "width of the Gaussian that weighs a run's keys")
    heavy_share: float = option(
        0.12, "share of the prompt, its heaviest tokens, that joins nothing"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma <= 0:
            raise ScopeError(f"sigma is {self.sigma}; it must be above 0")
        if not 0 <= self.heavy_share <= 1:
            raise ScopeError(f"heavy_share is {self.heavy_share}; it must be from 0 to 1")

    @classmethod
    def under(cls, fidelity: Fidelity) -> type[Compressor]:
        return cls

    def compress(self, prompt: Prompt, share: Share) -> Entries:
        scores = self.score(prompt)
        window = min(self.window_size, prompt.length, least(share))
        pivots = self._pivots(scores, self._joins(prompt.keys, scores, share, window))
        keys, values = prompt.keys.float(), prompt.values.float()
        wide = pivots[..., None].expand_as(keys)
        distances = (keys - keys.gather(1, wide)).square().sum(dim=-1)
        weights = (distances / (-2 * self.sigma**2)).exp()
        total = torch.zeros_like(weights).scatter_add(1, pivots, weights)
        is_pivot = pivots == torch.arange(prompt.length, device=pivots.device)

        def mixed(states: Tensor, own: Tensor) -> Tensor:
            sums = torch.zeros_like(states).scatter_add(1, wide, states * weights[..., None])
            return (sums / total[..., None]).to(own.dtype).where(is_pivot[..., None], own)

        merged = replace(prompt, keys=mixed(keys, prompt.keys), values=mixed(values, prompt.values))
        return merged.take(
            window_and_best(scores.masked_fill(~is_pivot, -torch.inf), prompt.length, share, window)
        )

    def _joins(self, keys: Tensor, scores: Tensor, share: Share, window: int) -> Tensor:
        """``[H, L]`` bool, which tokens join the one before them."""
        length = keys.shape[1]
        most = length - on_device(share, keys.device)[..., None]
        free = torch.ones_like(scores, dtype=torch.bool)
        free[:, length - window :] = False
        heavy = min(int(self.heavy_share * length), least(share) - window)
        ranked = scores[:, : length - window].sort(dim=-1, descending=True, stable=True).indices
        free.scatter_(1, ranked[:, :heavy], False)
        directions = normalize(keys.float(), dim=-1)
        similar = torch.full_like(scores, -torch.inf)
        similar[:, 1:] = (directions[:, 1:] * directions[:, :-1]).sum(dim=-1)
        similar[:, 1:].masked_fill_(~(free[:, 1:] & free[:, :-1]), -torch.inf)
        order = similar.sort(dim=-1, descending=True, stable=True).indices
        places = torch.arange(length, device=keys.device).expand_as(order)
        rank = torch.zeros_like(order).scatter(1, order, places)
        return (similar > self.least_similarity) & (rank < most)

    @staticmethod
    def _pivots(scores: Tensor, joins: Tensor) -> Tensor:
        """``[H, L]`` int64, the heaviest token of each token's run; of equals the earliest."""
        run = (~joins).cumsum(dim=-1) - 1
        lowest = torch.full_like(scores, -torch.inf)
        heaviest = lowest.scatter_reduce(1, run, scores, "amax").gather(1, run)
        places = torch.arange(scores.shape[1], device=scores.device).expand_as(run)
        candidates = places.where(scores == heaviest, scores.shape[1])
        first = torch.full_like(run, scores.shape[1]).scatter_reduce(1, run, candidates, "amin")
        return first.gather(1, run)
