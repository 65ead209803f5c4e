"""MiniCache: one direction for the keys and values of two neighbouring layers (2405.14366).

Here it is the middle of a prompt pool that is merged, head by head, where both layers hold the same
tokens; the paper also merges what is generated, and rounds what is merged to 4 bits. A slot holds
a key and its value, so both stay whole or neither does: what the two layers hold of a token is as
far apart as the mean of its keys' and its values' angles, and of the tokens a fixed share, the
farthest, stays as it is (the paper's rule by a threshold can be read in two ways).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

# How far directions go from the lower layer's to the upper's.
_T = 0.6
# Sine of an angle below which directions are the same, or opposite.
_TINY = 1e-4


def first_merged(share: float, num_layers: int) -> int:
    """S, the first of the layers that come in pairs (S, S + 1), (S + 2, S + 3) ... up to the last.

    The paper's share is one half. Of an odd number of layers the last stays alone.
    """
    return num_layers - int(share * num_layers)


def is_merged(share: float, num_layers: int) -> NDArray[np.bool_]:
    """``[N]`` which layers have a partner."""
    first = first_merged(share, num_layers)
    number = np.arange(num_layers) - first
    return (number >= 0) & (number < (num_layers - first) // 2 * 2)


def distances(lower: Tensor, upper: Tensor) -> Tensor:
    """Angles between ``[..., D]`` vectors of two layers, as a part of pi: ``[...]`` float32."""
    return _angles(_unit(lower), _unit(upper)) / torch.pi


def directions(lower: Tensor, upper: Tensor) -> Tensor:
    """The unit vectors that stand for both, section 3.2: ``[..., D]`` float32.

        e = sin((1 - t) Omega) / sin(Omega) x_l + sin(t Omega) / sin(Omega) x_u,  t = 0.6

    with unit vectors x_l and x_u and the angle Omega between them.
    """
    lower, upper = _unit(lower), _unit(upper)
    angle = _angles(lower, upper)[..., None]
    sine = angle.sin()
    along = ((1 - _T) * angle).sin() * lower + (_T * angle).sin() * upper
    straight = (1 - _T) * lower + _T * upper
    return normalize(along.where(sine > _TINY, straight), dim=-1)


def _unit(vectors: Tensor) -> Tensor:
    return normalize(vectors.float(), dim=-1)


def _angles(lower: Tensor, upper: Tensor) -> Tensor:
    return (lower * upper).sum(dim=-1).clamp(-1, 1).arccos()
